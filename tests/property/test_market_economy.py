"""No strategy beats honest work on the compute market: not many names, nor dealing with oneself, nor starting anew."""

import pytest

from tutti.testing.market_economy import STRATEGIES, compare

SEEDS = range(6)


def mean_of(strategy: str) -> tuple[float, float]:
    found = [compare(strategy, seed) for seed in SEEDS]
    return sum(its for its, _ in found) / len(found), sum(others for _, others in found) / len(found)


@pytest.mark.parametrize("strategy", sorted(set(STRATEGIES) - {"honest"}))
def test_honest_work_earns_most(strategy):
    its, _ = mean_of(strategy)
    honest, _ = mean_of("honest")
    assert its < honest


def test_an_honest_owner_earns_what_others_with_the_same_stake_earn():
    its, others = mean_of("honest")
    assert its == pytest.approx(others, rel=0.2)


def test_cheating_under_ever_new_names_loses_money():
    its, _ = mean_of("cheats always, under ever new names")
    assert its < 0
