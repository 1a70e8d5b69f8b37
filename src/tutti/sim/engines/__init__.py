"""How the nodes of a cohort are computed: one port, several engines, one result."""

from tutti.sim.engines.port import Assignment, CannotCompute, Engine, Failed, Trained, engines

__all__ = ["Assignment", "CannotCompute", "Engine", "Failed", "Trained", "engines"]
