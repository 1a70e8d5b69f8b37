"""Sweeps: which runs there are, what their mean and interval is, and the page that shows them."""

import xml.etree.ElementTree as ElementTree
from statistics import fmean, stdev

import pytest

from tutti.sim.history import RoundRecord
from tutti.sim.page import Chart, nice, page, svg, write
from tutti.sim.sweep import Point, Trial, curves, grid, point, student


def record(number: int, accuracy: float, by: str = "coordinator") -> RoundRecord:
    return RoundRecord(round=number, model="m", evaluated={by: {"accuracy": accuracy}})


def test_every_combination_runs_with_every_seed():
    trials = grid([("lr", "0.1"), ("model", "mlp"), ("lr", "0.2"), ("lr", "0.1")], range(3, 5))
    assert [(trial.label, trial.seed) for trial in trials] == [
        ("lr=0.1, model=mlp", 3),
        ("lr=0.1, model=mlp", 4),
        ("lr=0.2, model=mlp", 3),
        ("lr=0.2, model=mlp", 4),
    ]
    assert grid([], range(1)) == [Trial({}, 0)]


def test_an_interval_by_hand():
    # mean 2, standard deviation 1, three runs: 4.303 / sqrt(3)
    assert point(7, [1.0, 2.0, 3.0]) == Point(
        7, 2.0, pytest.approx(-0.4844, abs=1e-3), pytest.approx(4.4844, abs=1e-3), 3
    )
    assert point(0, [0.5]) == Point(0, 0.5, 0.5, 0.5, 1)


def test_quantiles_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    for freedom in (*range(1, 60), 100, 1000):
        assert student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=6e-4)


def test_an_interval_holds_the_mean_as_often_as_it_says():
    numpy = pytest.importorskip("numpy")
    rng = numpy.random.default_rng(1)
    points = [point(0, rng.normal(5.0, 2.0, 4).tolist()) for _ in range(2000)]
    assert sum(found.low <= 5.0 <= found.high for found in points) / 2000 == pytest.approx(0.95, abs=0.015)


def test_curves_take_what_was_measured_and_finite():
    one, two = Trial({"lr": "0.1"}, 0), Trial({"lr": "0.1"}, 1)
    records = [record(0, 0.1), record(1, 0.5), RoundRecord(round=2, model="m"), record(3, float("nan"))]
    found = curves([(one, records), (two, [record(0, 0.3, "nodes")]), (Trial({"lr": "9"}, 0), [])], "accuracy")
    assert [(p.round, p.mean, p.runs) for p in found["lr=0.1"]] == [(0, pytest.approx(0.2), 2), (1, 0.5, 1)]
    assert found["lr=9"] == []
    values = [0.1, 0.3]
    assert found["lr=0.1"][0].high == pytest.approx(fmean(values) + 12.706 * stdev(values) / 2**0.5)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.07, 0.93, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (-3.0, 12.0, [-5, 0, 5, 10, 15]),
        (4.0, 4.0, [4, 5]),
        (0.0, 0.0, [0, 0.2]),
    ],
)
def test_ticks_are_round_and_cover_everything(low, high, ticks):
    assert nice(low, high) == pytest.approx(ticks)
    assert nice(low, high)[0] <= low <= high <= nice(low, high)[-1]


CHART = Chart("accuracy", {"a<b": [point(0, [0.1, 0.2]), point(1, [0.4, 0.8])], "c": []})


def test_a_picture_has_a_line_and_a_band_for_each_curve():
    picture = ElementTree.fromstring(svg(CHART))
    fills = [path.get("fill") for path in picture.findall("path") if path.get("fill")]
    assert sorted(fills) == ["#4269d0", "none"]
    assert [title.text for title in picture.iter("title")] == ["a<b"]


def test_two_runs_that_say_little_do_not_flatten_the_curve():
    wide = Chart("accuracy", {"": [point(0, [0.1, 0.1]), point(1, [0.2, 0.9]), point(2, [0.8, 0.8])]})
    assert wide.curves[""][1].high > 4
    picture = ElementTree.fromstring(svg(wide))
    ticks = [float(text.text or "") for text in picture.findall("text") if text.get("text-anchor") == "end"]
    assert (min(ticks), max(ticks)) == (0, 1)
    (band, *_) = [path.get("d") or "" for path in picture.findall("path") if path.get("opacity")]
    heights = [float(pair.split()[1]) for pair in band.strip("MZ").split("L")]
    assert min(heights) == 12
    assert max(heights) == 280


def test_the_page_needs_nothing_else_and_reloads_itself_only_while_it_runs(tmp_path):
    file = tmp_path / "page.html"
    for running in (True, False):
        write(file, "t<1>", "1 of 2 runs", [CHART, Chart("loss", {"c": []})], running=running)
        text = file.read_text()
        assert ("http-equiv" in text) is running
        assert "t&lt;1&gt;" in text
        assert "a&lt;b" in text
        assert "<h2>loss" not in text
        assert "://" not in text
        assert "<script" not in text
    assert [child.name for child in tmp_path.iterdir()] == ["page.html"]
    assert "Nothing has been measured yet" in page("t", "s", [], running=True)
