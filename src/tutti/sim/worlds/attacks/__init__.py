"""What a bad node of a world can do. It knows its own update only: attacks that need those of others are not here."""

from tutti.core.registry import Registry
from tutti.testing.attacks import Attack

attacks: Registry[Attack] = Registry("attack", "tutti.sim.worlds.attacks")
