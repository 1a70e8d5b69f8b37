"""A page that shows how simulations go: one HTML file that needs nothing else, and reloads itself while they run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10
from os import getpid
from pathlib import Path

from tutti.sim.sweep import Point

RELOAD_SECONDS = 2
_COLOURS = (
    "#4269d0",
    "#d1840a",
    "#e0503f",
    "#3f9d8b",
    "#3ca951",
    "#d6579b",
    "#8d4fd6",
    "#5b93e0",
    "#9c6b4e",
    "#7b828c",
)
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 720, 320, 64, 16, 12, 40
_STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #888; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 760px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.3rem; } h2 { font-size: 1rem; margin: 1.5rem 0 .3rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .9rem .2rem 0; text-align: right; }
td { font-variant-numeric: tabular-nums; } td:first-child, th:first-child { text-align: left; }
svg { width: 100%; height: auto; } svg text { fill: currentColor; font-size: 12px; }
.swatch { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .5em; }
"""


@dataclass(frozen=True, slots=True)
class Chart:
    """A metric by setting. Empty curves are of settings that have not measured anything yet."""

    metric: str
    curves: Mapping[str, Sequence[Point]]


def write(file: Path, title: str, state: str, charts: Sequence[Chart], *, running: bool) -> None:
    """Replace the page, whole or not at all."""
    partial = file.with_name(f".{file.name}.{getpid()}")
    partial.write_text(page(title, state, charts, running=running), encoding="utf-8")
    partial.replace(file)


def page(title: str, state: str, charts: Sequence[Chart], *, running: bool) -> str:
    reload = f'<meta http-equiv="refresh" content="{RELOAD_SECONDS}">' if running else ""
    shown = [chart for chart in charts if any(chart.curves.values())]
    body = "\n".join(f"<h2>{escape(chart.metric)}</h2>\n{svg(chart)}\n{_table(chart)}" for chart in shown)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{reload}'
        f'<meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head>\n"
        f"<body><h1>{escape(title)}</h1>\n<p>{escape(state)}</p>\n{body or '<p>Nothing has been measured yet.</p>'}\n"
        "</body></html>\n"
    )


def svg(chart: Chart) -> str:
    """Means as lines, 95 % confidence intervals as bands, which end at the edge where they are far wider than the
    means are apart: a few runs say little."""
    points = [point for curve in chart.curves.values() for point in curve]
    across = [round for round in nice(0, max(1, *(point.round for point in points))) if round == int(round)]
    ticks = nice(*_span(points))
    rounds, low, high = across[-1], ticks[0], ticks[-1]

    def x(round: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * round / rounds

    def y(value: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - min(high, max(low, value))) / (high - low)

    lines = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(chart.metric)} over rounds">',
        *(
            f'<path d="M{_LEFT} {y(tick):.1f}H{_WIDTH - _RIGHT}" stroke="var(--line)"/>'
            f'<text x="{_LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
            for tick in ticks
        ),
        *(f'<text x="{x(round):.1f}" y="{_HEIGHT - 20}" text-anchor="middle">{round:g}</text>' for round in across),
        f'<text x="{(_LEFT + _WIDTH) / 2:.0f}" y="{_HEIGHT - 4}" text-anchor="middle">round</text>',
    ]
    for number, (label, curve) in enumerate(chart.curves.items()):
        if not curve:
            continue
        colour = _colour(number)
        if any(point.runs > 1 for point in curve):
            above = [f"{x(point.round):.1f} {y(point.high):.1f}" for point in curve]
            below = [f"{x(point.round):.1f} {y(point.low):.1f}" for point in reversed(curve)]
            lines.append(f'<path d="M{"L".join([*above, *below])}Z" fill="{colour}" opacity=".2"/>')
        middle = "L".join(f"{x(point.round):.1f} {y(point.mean):.1f}" for point in curve)
        lines.append(
            f'<path d="M{middle}" fill="none" stroke="{colour}" stroke-width="2" stroke-linecap="round">'
            f"<title>{escape(label or chart.metric)}</title></path>"
        )
    return "\n".join([*lines, "</svg>"])


def _span(points: Sequence[Point]) -> tuple[float, float]:
    """What the axis covers: the means, and a tenth more on either side where intervals reach so far."""
    low, high = min(point.mean for point in points), max(point.mean for point in points)
    apart = high - low or abs(high) or 1.0
    lowest, highest = min(point.low for point in points), max(point.high for point in points)
    return max(lowest, low - apart / 10), min(highest, high + apart / 10)


def nice(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers, evenly apart, from at most `low` to at least `high`."""
    spread = high - low or abs(high) or 1.0
    size: float = 10.0 ** floor(log10(spread / about))
    step = next(size * factor for factor in (1, 2, 5, 10) if spread / (size * factor) <= about)
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    return [round(step * number, 12) for number in range(first, max(last, first + 1) + 1)]


def _table(chart: Chart) -> str:
    rows = "\n".join(
        f'<tr><td><span class="swatch" style="background:{_colour(number)}"></span>{escape(label or "all runs")}</td>'
        f"<td>{curve[-1].round}</td><td>{curve[-1].mean:.4g}</td>"
        f"<td>{_interval(curve[-1])}</td><td>{curve[-1].runs}</td></tr>"
        for number, (label, curve) in enumerate(chart.curves.items())
        if curve
    )
    return f"<table><tr><th>setting</th><th>round</th><th>mean</th><th>95 %</th><th>runs</th></tr>\n{rows}</table>"


def _interval(point: Point) -> str:
    return f"± {(point.high - point.low) / 2:.2g}" if point.runs > 1 else "–"


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]
