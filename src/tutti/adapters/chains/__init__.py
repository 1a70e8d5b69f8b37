"""Where a member of a ring keeps what was agreed on (ports.ring.ChainStore)."""
