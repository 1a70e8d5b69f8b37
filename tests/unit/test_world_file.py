"""World files, distributions and availability."""

from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np
import pytest

from tutti.core.errors import UserError
from tutti.core.registry import Choice
from tutti.sim.worlds import load_world, read_world
from tutti.sim.worlds.availability import DAY, traces
from tutti.sim.worlds.distributions import distributions, drawn
from tutti.sim.worlds.node import profiles

EXAMPLE = Path(__file__).parents[2] / "examples/world.toml"


def windows(choice: str, count: int = 5, node: int = 1, seed: int = 0):
    return list(islice(traces.build(Choice.parse(choice))(node, np.random.default_rng(seed)), count))


def test_the_example_reads() -> None:
    world = read_world(EXAMPLE)
    assert world.nodes == 100
    assert world.machine.speed.name == "lognormal"
    assert world.faults.crash is not None


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"nodes": 0}, "nodes"),
        ({"nodez": 3}, "nodez"),
        ({"machine": {"speed": "fast"}}, "no distribution 'fast'; choose from: constant, exponential"),
        ({"machine": {"speed": "uniform:low=3,high=1"}}, "expected low <= high"),
        ({"network": {"latency": -1}}, "distribution 'constant'"),
        ({"network": "slow"}, "network"),
        ({"faults": {"drop_out": 2}}, "drop_out"),
        ({"availability": "never"}, "no availability 'never'"),
        ({"availability": "file:path=/does/not/exist"}, "cannot read the availability file"),
        ({"byzantine": {"attack": "alie"}}, "no attack 'alie'"),
    ],
)
def test_mistakes_are_named(raw: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_world(raw)


def test_a_number_is_a_constant() -> None:
    world = load_world({"machine": {"speed": 3}})
    assert drawn(world.machine.speed)(np.random.default_rng(0)) == 3


@pytest.mark.parametrize(
    ("choice", "middle"),
    [
        ("constant:2", 2.0),
        ("uniform:low=1,high=3", 2.0),
        ("exponential:mean=1", np.log(2)),
        ("lognormal:median=5,sigma=1", 5.0),
        ("pareto:least=1,shape=2", 2**0.5),
    ],
)
def test_distributions_have_their_median(choice: str, middle: float) -> None:
    draw, rng = distributions.build(Choice.parse(choice)), np.random.default_rng(1)
    drawn = [draw(rng) for _ in range(4000)]
    assert median(drawn) == pytest.approx(middle, rel=0.06)
    assert min(drawn) >= 0


def test_always() -> None:
    assert windows("always") == [(0.0, float("inf"))]


def test_diurnal_nights() -> None:
    assert windows("diurnal:opens=22,hours=8,spread=0,miss=0", 3) == [
        (0.0, 6 * 3600.0),
        (22 * 3600.0, DAY + 6 * 3600.0),
        (DAY + 22 * 3600.0, 2 * DAY + 6 * 3600.0),
    ]


@pytest.mark.parametrize("choice", ["diurnal:hours=20,spread=6", "sometimes:on=10,off=30", "diurnal:miss=0.5"])
def test_windows_are_in_order(choice: str) -> None:
    for seed in range(20):
        found = windows(choice, 50, seed=seed)
        times = [time for window in found for time in window]
        assert times == sorted(times)
        assert all(begins < ends for begins, ends in found)


def test_sometimes_is_there_for_its_share() -> None:
    found = windows("sometimes:on=10,off=30", 4000)
    assert sum(ends - begins for begins, ends in found) / found[-1][1] == pytest.approx(0.25, abs=0.02)


def test_recorded_availability(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("node,from,to\n1,0,10\n1,20,30\n2,5,15\n")
    assert windows(f"file:path={file}", node=1) == [(0, 10), (20, 30)]
    assert windows(f"file:path={file}", node=4) == [(5, 15)]
    assert windows(f"file:path={file},repeat=100", 3, node=2) == [(5, 15), (105, 115), (205, 215)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no windows"),
        ("node,from,to\n1,10,5\n", "line 2: expected windows of a node in order"),
        ("node,from,to\n1,0,10\n1,5,20\n", "line 3"),
        ("node,from,to\n1,zero,10\n", "line 2: expected columns"),
        ("who,when\n1,2\n", "expected columns node, from, to"),
    ],
)
def test_damaged_traces_are_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        windows(f"file:path={file}")


def test_nodes_differ_and_stay_the_same() -> None:
    raw = {"nodes": 50, "machine": {"speed": "lognormal:median=100"}, "byzantine": {"share": 0.1}}
    world = load_world(raw)
    assert profiles(world) == profiles(world)
    assert len({profile.speed for profile in profiles(world)}) == 50
    assert sum(profile.bad for profile in profiles(world)) == 5
    another = profiles(load_world({**raw, "seed": 1}))
    assert [p.bad for p in another] != [p.bad for p in profiles(world)]
    other_day = load_world({**raw, "faults": {"seed": 9}})
    assert profiles(other_day) == profiles(world)
