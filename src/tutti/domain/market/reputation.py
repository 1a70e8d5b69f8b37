"""Reputation: how sure one can be of a worker, from how its results were judged.

Outcomes are taken as draws of a coin of unknown bias with a uniform prior; the *bound* is what the bias exceeds with
95 % certainty, the 5 % quantile of Beta(1 + successes, 1 + failures) (Josang and Ismail 2002, The beta reputation
system). Doubt counts against a worker, so a new identity starts at the bottom (0.05) and has nothing to win by starting
anew. Each outcome makes the earlier ones weigh a little less. People see a *score* from 0 to 100: the bound in parts
of what a spotless record of the same length would give, so that everybody starts at 100.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import exp, lgamma, log

DOUBT = 0.05
"""The chance that the bias is below the bound."""

MEMORY = 0.98
"""What an outcome still weighs once a further one has come: about the last fifty count."""


@dataclass(frozen=True, slots=True)
class Record:
    """Outcomes so far, weighted: recent ones count most."""

    successes: float = 0.0
    failures: float = 0.0

    def after(self, *, success: float = 0.0, failure: float = 0.0) -> "Record":
        return Record(MEMORY * self.successes + success, MEMORY * self.failures + failure)

    @property
    def bound(self) -> float:
        """0 to 1."""
        return lower_bound(round(self.successes, 6), round(self.failures, 6))

    @property
    def score(self) -> int:
        """0 to 100; 100 for a spotless record, an empty one too."""
        if self.failures == 0:
            return 100
        return int(100 * self.bound / lower_bound(round(self.successes + self.failures, 6), 0.0))


@lru_cache(maxsize=16_384)
def lower_bound(successes: float, failures: float) -> float:
    """The DOUBT quantile of Beta(1 + successes, 1 + failures), to 1e-9, by bisection."""
    a, b = 1 + successes, 1 + failures
    if b == 1:
        return float(DOUBT ** (1 / a))
    low, high = 0.0, 1.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        if beta_below(middle, a, b) < DOUBT:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def beta_below(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b), by its continued fraction (https://dlmf.nist.gov/8.17.E22)."""
    if not 0 < x < 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # where it converges fast
        return 1 - beta_below(1 - x, b, a)
    front = exp(lgamma(a + b) - lgamma(a) - lgamma(b) + a * log(x) + b * log(1 - x)) / a
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, 500):
        for step in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d, c = 1 / (1 + step * d), 1 + step / c
            fraction *= c * d
        if abs(c * d - 1) < 1e-12:
            break
    return front * fraction
