"""Scores of contributions: against exact Shapley values, and what cheats get."""

import numpy as np
import pytest
from msgspec.structs import replace

from tutti.core import scoring
from tutti.domain.contributions import (
    WHOLE,
    BadProof,
    Contribution,
    check_audits,
    check_history,
    check_proof,
    check_round,
    commitment_to,
    is_audited,
    payments_of,
    portions,
    prove,
    root_of,
    settle,
    why,
)

SIZE = 200


def quadratic(seed=0, nodes=6, noise=(0.1, 0.2, 0.4, 0.8, 1.6, 3.0)):
    """A convex loss |w - best|^2 / 2, and updates that go half of the way, more or less precisely."""
    rng = np.random.default_rng(seed)
    best = rng.standard_normal(SIZE)
    deltas = np.array([0.5 * best + s * 0.1 * rng.standard_normal(SIZE) for s in noise[:nodes]])
    return best, deltas


def value_of(best, deltas, weights):
    """The gain in loss of a coalition: its weighted mean update, from w = 0."""
    weights = np.asarray(weights, float)

    def value(some):
        if not some:
            return 0.0
        chosen = sorted(some)
        mean = weights[chosen] @ deltas[chosen] / weights[chosen].sum()
        return float(best @ best - (best - mean) @ (best - mean)) / 2

    return value


def influence_of(best, deltas, weights):
    middle = np.asarray(weights, float) @ deltas / sum(weights) / 2
    gradient = middle - best
    return scoring.influence(deltas @ gradient, np.linalg.norm(deltas, axis=1), weights)


def test_influence_by_hand():
    # loss (w - 2)^2 / 2, updates 1 and 3 of equal weight: the mean is 2, the midpoint 1, the gradient there -1
    slopes, norms = np.array([-1.0, -3.0]), np.array([1.0, 3.0])
    assert scoring.influence(slopes, norms, [5, 5]) == pytest.approx([0.5, 1.0])  # the second is cut to the median, 2


def test_influence_sums_to_the_gain_of_the_round():
    best, deltas = quadratic(noise=(0.1,) * 6)
    weights = [10] * 6
    scores = influence_of(best, deltas / np.linalg.norm(deltas, axis=1, keepdims=True), weights)
    whole = value_of(best, deltas / np.linalg.norm(deltas, axis=1, keepdims=True), weights)(frozenset(range(6)))
    assert scores.sum() == pytest.approx(whole)


def test_shapley_by_hand():
    worth = {(): 0, (0,): 1, (1,): 2, (0, 1): 5}
    assert scoring.shapley(lambda some: worth[tuple(sorted(some))], 2) == pytest.approx([2.0, 3.0])


def rank(scores):
    return np.argsort(np.argsort(scores)).astype(float)


@pytest.mark.parametrize("seed", range(3))
def test_every_method_ranks_as_exact_shapley_values_do(seed):
    """Updates of equal length that point more or less to the optimum, two of them away from it."""
    rng = np.random.default_rng(seed)
    best = rng.standard_normal(SIZE)
    best /= np.linalg.norm(best)
    aside = np.linalg.qr(np.column_stack([best, rng.standard_normal((SIZE, 6))]))[0][:, 1:].T
    towards = np.array([0.9, 0.7, 0.5, 0.2, -0.3, -0.7])
    deltas = towards[:, None] * best + np.sqrt(1 - towards**2)[:, None] * aside
    weights = [10] * 6
    value = value_of(best, deltas, weights)
    drawn = scoring.coalitions(6, 400, seed)
    exact = rank(scoring.shapley(value, 6))
    assert np.corrcoef(exact, rank(influence_of(best, deltas, weights)))[0, 1] > 0.9
    assert np.corrcoef(exact, rank(scoring.leave_one_out(list(map(value, scoring.all_but_one(6))))))[0, 1] > 0.9
    assert np.corrcoef(exact, rank(scoring.banzhaf(list(map(value, drawn)), drawn, 6)))[0, 1] > 0.9


def test_a_weight_alone_earns_nothing_and_a_claim_no_more_than_twice_the_median():
    best, deltas = quadratic(noise=(0.1,) * 6)
    deltas[0] = 0
    scores = influence_of(best, deltas, [10**6, 10, 10, 10, 10, 10])
    assert scores[0] == 0
    assert scoring.shares([10, 10, 10, 10**6]) == pytest.approx([0.2, 0.2, 0.2, 0.4])


def test_an_update_of_eight_times_the_length_earns_no_more():
    best, deltas = quadratic(noise=(0.1,) * 6)
    deltas[0] *= 8
    scores = influence_of(best, deltas, [10] * 6)
    assert scores[0] < 1.1 * scores[1:].max()


def test_poison_scores_below_zero():
    best, deltas = quadratic(noise=(0.1,) * 6)
    deltas[2] *= -1
    assert influence_of(best, deltas, [10] * 6)[2] < 0


def test_sketches_keep_angles_whatever_the_pieces():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((1 << 20) + 77).astype(np.float32)
    b = (a + 0.5 * rng.standard_normal(a.size)).astype(np.float32)
    sa, sb = scoring.sketch(a, 7), scoring.sketch(b, 7)
    cosine = float(sa @ sb / np.linalg.norm(sa) / np.linalg.norm(sb))
    assert cosine == pytest.approx(1 / np.sqrt(1.25), abs=0.05)
    assert np.array_equal(sa, scoring.sketch(a, 7))


def sketches_of(deltas):
    return np.array([scoring.sketch(delta.astype(np.float32), 3) for delta in deltas])


def test_clones_with_noise_count_as_one_and_honest_updates_as_they_are():
    rng = np.random.default_rng(1)
    honest = rng.standard_normal((4, SIZE)) + rng.standard_normal(SIZE)  # alike, as of one task
    clones = honest[[1, 1]] + 0.01 * rng.standard_normal((2, SIZE))
    assert scoring.multiplicity(sketches_of([*honest, *clones])).tolist() == [1, 3, 1, 1, 3, 3]


def test_clones_of_an_update_earn_together_what_it_earns_alone():
    best, deltas = quadratic(noise=(3.0,) * 6)
    cloned = np.concatenate([deltas, deltas[[0] * 4]])
    counts = scoring.multiplicity(sketches_of(cloned))
    alone = influence_of(best, deltas, [10] * 6)
    together = influence_of(best, cloned, [10] * 10) / counts
    share = together[[0, 6, 7, 8, 9]].sum() / together.sum()
    assert share == pytest.approx(alone[0] / alone.sum(), rel=0.1)


def test_replays_are_found_and_honest_updates_are_not():
    rng = np.random.default_rng(1)
    now, before = rng.standard_normal((2, 4, SIZE))
    replay = before[2] + 5e-4 * rng.standard_normal(SIZE)
    assert scoring.repeated(sketches_of([*now, replay]), sketches_of(before)).tolist() == [False] * 4 + [True]
    assert not scoring.repeated(sketches_of(now), np.zeros((0, scoring.SKETCH), np.float32)).any()


# -- the rule ----------------------------------------------------------------------------------------


def given(**gains: float) -> list[Contribution]:
    found = portions(list(gains.values()))
    return [
        Contribution(job="j", round=1, node=node, digest=node * 64, weight=10, gain=gain)
        for node, gain in zip(gains, found, strict=True)
    ]


def test_payments_by_hand():
    settled = settle(given(a=3.0, b=1.0, c=-2.0), {}, 1000)
    assert [one.gain for one in settled] == [750_000_000, 250_000_000, 0]
    # 100 for all alike, 33 each; of 900 three quarters are 675, a quarter 225; nobody gets more than 500
    assert [one.payment for one in settled] == [500, 258, 33]


def test_standing_is_a_moving_average_and_faults_earn_nothing():
    first = given(a=1.0, b=1.0)
    first[1] = Contribution(job="j", round=1, node="b", digest="b", weight=10, gain=WHOLE // 2, fault="a copy")
    settled = settle(first, {"a": WHOLE, "b": WHOLE}, 100)
    assert [one.standing for one in settled] == [750_000_000, 500_000_000]
    assert [one.payment for one in settled] == [100, 0]


@pytest.mark.parametrize("seed", range(50))
def test_never_more_than_the_pool_is_paid(seed):
    rng = np.random.default_rng(seed)
    some = given(**{f"n{i}": float(g) for i, g in enumerate(rng.standard_normal(rng.integers(1, 12)))})
    pool = int(rng.integers(0, 10_000))
    payments = payments_of(settle(some, {}, pool), pool)
    assert all(paid >= 0 for paid in payments)
    assert sum(payments) <= pool


def test_a_round_can_be_computed_again_and_every_change_shows():
    settled = settle(given(a=3.0, b=1.0, c=2.0), {"a": 5}, 1000)
    check_round(settled, 1000)
    for node in "abc":
        check_proof(prove(settled, node))
    with pytest.raises(BadProof, match="rule"):
        check_round([settled[0], settled[2], settled[1]][:2], 1000)
    proof = prove(settled, "b")
    richer = type(proof)(
        contribution=Contribution(job="j", round=1, node="b", digest="b" * 64, weight=10, payment=999),
        path=proof.path,
        root=proof.root,
    )
    with pytest.raises(BadProof, match="changed"):
        check_proof(richer)
    with pytest.raises(BadProof, match="no update"):
        prove(settled, "z")
    assert root_of(settled) == proof.root


def test_about_a_fifth_of_the_rounds_are_audited():
    drawn = [is_audited(b"a" * 32, round) for round in range(1000)]
    assert 150 < sum(drawn) < 250
    assert drawn != [is_audited(b"b" * 32, round) for round in range(1000)]


SECRET = b"s" * 32


def rounds_of_a_job(count=12):
    """Rounds that are paid by the rule, one after another, of which just those are audited that the secret draws."""
    rounds, standings = {}, {}
    for number in range(1, count + 1):
        measured = given(a=3.0, b=1.0, c=number / 4)
        if is_audited(SECRET, number):
            measured = [replace(one, audit=one.gain) for one in measured]
        rounds[number] = settle([replace(one, round=number) for one in measured], standings, 1000)
        standings |= {one.node: one.standing for one in rounds[number]}
    return rounds


def test_standings_go_on_from_round_to_round():
    rounds = rounds_of_a_job()
    check_history("j", rounds)
    for number in (2, 7):
        without = {each: its for each, its in rounds.items() if each != number}
        with pytest.raises(BadProof, match=f"round {number + 1} of j says that . stood at"):
            check_history("j", without)
    changed = [replace(one, before=WHOLE) if one.node == "a" else one for one in rounds[5]]
    lifted = {**rounds, 5: settle(changed, {"a": WHOLE, "b": 1, "c": 1}, 1000)}
    check_round(lifted[5], 1000)  # by itself it is as good as any
    with pytest.raises(BadProof, match="round 5 of j says that a stood at"):
        check_history("j", lifted)


def test_audits_are_those_that_a_secret_drew_which_was_committed_to():
    rounds = rounds_of_a_job(40)
    commitment = commitment_to(SECRET)
    check_audits("j", commitment, SECRET.hex(), rounds)
    with pytest.raises(BadProof, match="not the one that was committed to"):
        check_audits("j", commitment, bytes(32).hex(), rounds)
    drawn = next(number for number in rounds if is_audited(SECRET, number))
    other = next(number for number in rounds if not is_audited(SECRET, number))
    left_out = {**rounds, drawn: [replace(one, audit=None) for one in rounds[drawn]]}
    with pytest.raises(BadProof, match=f"round {drawn} of j was drawn, and it was not audited"):
        check_audits("j", commitment, SECRET.hex(), left_out)
    added = {**rounds, other: [replace(one, audit=0) for one in rounds[other]]}
    with pytest.raises(BadProof, match=f"round {other} of j was audited, and it was not drawn"):
        check_audits("j", commitment, SECRET.hex(), added)


def test_why_names_the_figures():
    settled = settle(given(a=3.0, b=1.0), {"a": WHOLE // 2}, 1000)
    assert "75.0% of the round's gain" in why(settled[0], 1000, 2)
    assert "50 of it are the equal share of 2" in why(settled[0], 1000, 2)
