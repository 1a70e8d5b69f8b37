"""How the nodes of a cohort are computed: one port, several engines, one result."""

from tutti.sim.engines.port import Assignment, Engine, Failed, Trained

__all__ = ["Assignment", "Engine", "Failed", "Trained"]
