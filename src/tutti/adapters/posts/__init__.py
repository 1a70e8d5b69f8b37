"""Letters between the replicas of a coordinator (ports.post)."""
