"""A ring without a centre: Chord as values and pure functions. Begin with chord.py: the theory is at its head."""
