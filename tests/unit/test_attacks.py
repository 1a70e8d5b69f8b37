"""Bad nodes do what their papers say, to the numbers."""

import numpy as np
import pytest

from tutti.core.params import Params
from tutti.core.reduce import Update, fold, reducers
from tutti.core.registry import Choice
from tutti.ports.training import Examples
from tutti.testing import attacks
from tutti.testing.attacks import ATTACKS, Attack

EXAMPLES = Examples(np.zeros((8, 2, 3), np.float32), np.arange(8))


def delta(*values: float) -> Params:
    return Params.from_arrays({"w": np.array(values)})


def crafted(attack: Attack, own: Params, *honest: Params, bad: int = 1) -> list[float]:
    return attack.craft(own, honest, bad, np.random.default_rng(0)).buffer.tolist()


@pytest.mark.parametrize("name", ATTACKS)
def test_inputs_stay_as_they_are_and_the_layout_is_kept(name: str) -> None:
    attack, own, honest = ATTACKS[name], delta(1, 2), [delta(3, 4), delta(5, 7), delta(0, 1)]
    sent = attack.craft(own, honest, 1, np.random.default_rng(0))
    assert sent.layout == own.layout
    attack.poison(EXAMPLES, np.random.default_rng(0))
    if attack.goal is not None:
        attack.goal(EXAMPLES)
    assert own.buffer.tolist() == [1, 2]
    assert EXAMPLES.y.tolist() == list(range(8))
    assert not EXAMPLES.x.any()


def test_no_attack_is_an_honest_node() -> None:
    attack, own = ATTACKS["none"], delta(1, 2)
    assert attack.craft(own, [], 1, np.random.default_rng(0)) is own
    assert attack.poison(EXAMPLES, np.random.default_rng(0)) is EXAMPLES
    assert attack.goal is None


def test_label_flip() -> None:
    attack = attacks.label_flip(classes=8)
    poisoned = attack.poison(EXAMPLES, np.random.default_rng(0))
    assert poisoned.y.tolist() == [7, 6, 5, 4, 3, 2, 1, 0]
    assert attack.goal is not None
    assert attack.goal(EXAMPLES).y.tolist() == poisoned.y.tolist()


def test_sign_flip_scaling_and_inner_product() -> None:
    assert crafted(attacks.sign_flip(3), delta(1, -2)) == [-3, 6]
    assert crafted(attacks.scaled_update(10), delta(1, -2)) == [10, -20]
    assert crafted(attacks.inner_product(0.5), delta(9, 9), delta(1, 2), delta(3, -4)) == [-1, 0.5]


def test_alie() -> None:
    honest = delta(1, 5), delta(3, 5)  # means 2 and 5, standard deviations 1 and 0
    assert crafted(attacks.alie(z=1.5), delta(9, 9), *honest) == [0.5, 5]


def test_alie_stays_where_honest_nodes_are() -> None:
    # the paper's example: of 50 nodes 24 bad ones need 2 supporters, (50 - 24 - 2)/(50 - 24), z = 1.43
    honest = [delta(x) for x in np.linspace(-1, 1, 26)]
    spread = np.std(np.linspace(-1, 1, 26))
    assert crafted(attacks.alie(), delta(0), *honest, bad=24) == pytest.approx([-1.426 * spread], rel=1e-3)


def test_free_riders_send_nothing_or_noise() -> None:
    assert crafted(attacks.free_rider(), delta(1, 2)) == [0, 0]
    noise = attacks.free_rider(0.5).craft(Params.from_arrays({"w": np.ones(4000)}), [], 1, np.random.default_rng(1))
    assert noise.buffer.std() == pytest.approx(0.5, rel=0.05)


def test_backdoor_marks_a_share_of_the_rows() -> None:
    attack = attacks.backdoor(target=5, share=0.5, pixels=2, factor=3.0)
    poisoned = attack.poison(EXAMPLES, np.random.default_rng(0))
    marked = poisoned.x.reshape(8, -1)[:, -2:].all(axis=1)
    assert marked.sum() == 4
    assert not poisoned.x.reshape(8, -1)[:, :-2].any()
    assert (poisoned.y[marked] == 5).all()
    assert (poisoned.y[~marked] == EXAMPLES.y[~marked]).all()
    assert poisoned.x.shape == EXAMPLES.x.shape
    assert crafted(attack, delta(1)) == [3]


def test_a_backdoors_goal_is_its_label_on_marked_rows_of_other_classes() -> None:
    attack = attacks.backdoor(target=5, pixels=2)
    assert attack.goal is not None
    wanted = attack.goal(EXAMPLES)
    assert wanted.y.tolist() == [5] * 7
    assert wanted.x.reshape(7, -1)[:, -2:].all()


@pytest.mark.parametrize("name", ["median", "trimmed-mean:0.3", "krum:f=3", "multi-krum:f=3", "geometric-median"])
@pytest.mark.parametrize("attack", ["sign flip", "scaled update", "inner product"])
def test_a_robust_reducer_is_nearer_to_the_honest_mean_than_the_mean_is(name: str, attack: str) -> None:
    rng = np.random.default_rng(0)
    direction = rng.standard_normal(50)
    honest = [Params.from_arrays({"w": direction + 0.3 * rng.standard_normal(50)}) for _ in range(7)]
    bad = [ATTACKS[attack].craft(honest[k], honest, 3, rng) for k in range(3)]
    goal = np.mean([one.buffer for one in honest], axis=0)

    def distance(text: str) -> float:
        updates = [Update(one, 1) for one in [*bad, *honest]]
        result = fold(reducers.build(Choice.parse(text)), updates, honest[0].layout, 1)
        return float(np.linalg.norm(result.buffer - goal))

    assert distance(name) < 0.5 * distance("mean")
