"""Who holds what: the counts in the picture are those of the partition, and it is an SVG that a browser can draw."""

from xml.etree import ElementTree

import numpy as np
import pytest

from support.shared_data import SHARED, needs
from tutti.adapters.plots import CannotPlot, bars, counts, drawn, who_holds_what
from tutti.core.registry import Choice

SVG = "{http://www.w3.org/2000/svg}"


def titles(svg: str) -> list[str]:
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    return [each.text or "" for rect in root.iter(f"{SVG}rect") for each in rect]


def test_every_row_is_in_the_picture() -> None:
    said = titles(drawn(who_holds_what(Choice.parse("digits:partition=dirichlet:0.3"), 6)))
    assert sum(int(title.split()[1]) for title in said) == 1438
    assert {title.split()[0] for title in said} == {f"node-{k}:" for k in range(1, 7)}


def test_bars_are_as_wide_as_the_node_has_rows() -> None:
    svg = bars(np.array([[10, 30], [20, 0]]), ["no <&", "yes"], "a < b", ["one", "two"])
    root = ElementTree.fromstring(svg)
    widths = [float(rect.get("width", 0)) for rect in root.iter(f"{SVG}rect") if len(rect)]
    assert widths == pytest.approx([167.5, 502.5, 335.0])
    assert titles(svg)[0] == "one: 10 of class no <&"


def test_targets_are_counted_in_ranges() -> None:
    targets = np.arange(100, dtype=np.float32)[:, None]
    table, names = counts(targets, [np.arange(50), np.arange(50, 100)])
    assert table.tolist() == [[10] * 5 + [0] * 5, [0] * 5 + [10] * 5]
    assert names[0] == "0 … 9.9"


@needs("heart-disease")
def test_nodes_of_one_id_have_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUTTI_DATA_DIR", str(SHARED))
    said = titles(drawn(who_holds_what(Choice.parse("heart-disease:partition=natural-id"), 4)))
    assert "switzerland: 30 of class diseased" in said


@needs("letter")
def test_many_classes_and_nodes_without_rows_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUTTI_DATA_DIR", str(SHARED))
    assert len(titles(drawn(who_holds_what(Choice.parse("letter:partition=iid"), 100)))) > 2000
    with pytest.raises(CannotPlot, match="divides features"):
        drawn(who_holds_what(Choice.parse("letter:partition=vertical"), 4))
