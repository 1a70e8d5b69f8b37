"""The compute market's services: the coordinator's desk, and the node's half."""
