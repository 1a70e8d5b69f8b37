"""Realistic worlds: nodes that differ, come and go, break and cheat, on virtual time or in a deployment."""

from tutti.sim.worlds.forecast import forecast_world
from tutti.sim.worlds.run import Outcome, simulate_world
from tutti.sim.worlds.world import World, load_world, read_world

__all__ = ["Outcome", "World", "forecast_world", "load_world", "read_world", "simulate_world"]
