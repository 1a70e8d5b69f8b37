"""Simulation: a whole federation in one process, with the round machine, strategies and trainers of a deployment."""

from tutti.sim.federation import Federation
from tutti.sim.history import History, RoundRecord
from tutti.sim.simulation import simulate

__all__ = ["Federation", "History", "RoundRecord", "simulate"]
