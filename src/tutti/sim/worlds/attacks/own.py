"""Attacks on what the node itself has: its rows and its update (see tutti.testing.attacks for their sources)."""

from tutti.sim.worlds.attacks import attacks
from tutti.testing.attacks import backdoor, free_rider, label_flip, scaled_update, sign_flip

for attack in (label_flip, sign_flip, scaled_update, free_rider, backdoor):
    attacks.register(attack.__name__)(attack)
