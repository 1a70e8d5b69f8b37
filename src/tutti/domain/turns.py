"""Whose turn it is, where a job prefers nodes that answer fast: by machine and link, and never always the same ones.

Places are given in this order: to nodes that have not been asked for too long, the longest first; to fast ones, drawn
with a weight of (T / t)^2 for those slower than the middle T of the known, as the system utility of Oort does (Lai et
al. 2021, section 4.2, https://arxiv.org/abs/2010.06081), one that was never asked being taken for fast; and the rest by
chance, which is its exploration.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import log
from statistics import median

from tutti.core.sampling import Pool, draws
from tutti.domain.events import NodeId
from tutti.domain.pacing import Tempo
from tutti.domain.rounds import Part, Round, waited

FAST, NEW, DUE = "answers fast", "not asked before", "it was its turn"


@dataclass(frozen=True, slots=True)
class Turn:
    """When a node was last asked, by round; how long a round would wait for all of its work, None: not known."""

    asked: int = 0
    seconds: float | None = None


def choose(
    pool: Pool, k: int, turns: Mapping[NodeId, Turn], *, prefer: float, within: int, seed: int, round: int, attempt: int
) -> tuple[tuple[NodeId, ...], dict[NodeId, str]]:
    """Draw `k` nodes, sorted; and of those that were not drawn by chance alone, why.

    `prefer` is the share of the places for fast nodes. As long as the pool and `k` stay as they are, a node is asked
    again after `within` + ceil(len(pool) / k) - 1 rounds at the latest.
    """
    if k >= len(pool):
        return tuple(pool), {}
    rng = draws(seed, round, attempt)
    order = [pool[at] for at in rng.permutation(len(pool))]
    lots = dict(zip(pool, rng.random(len(pool)), strict=True))
    last = {node: turns.get(node, Turn()) for node in order}
    overdue = sorted((node for node in order if round - last[node].asked >= within), key=lambda n: last[n].asked)
    why = dict.fromkeys(overdue[:k], DUE)
    free = {node: turn for node, turn in last.items() if node not in why}
    fast = _fastest(free, lots, min(int(prefer * k + 0.5), k - len(why)))
    why |= {node: FAST if last[node].asked else NEW for node in fast}
    others = [node for node in order if node not in why]
    return tuple(sorted([*why, *others[: k - len(why)]])), dict(sorted(why.items()))


def _fastest(free: Mapping[NodeId, Turn], lots: Mapping[NodeId, float], count: int) -> list[NodeId]:
    """Drawn by weight without replacement (Efraimidis and Spirakis 2006); `lots` are evenly from 0 to 1."""
    known = {node: turn.seconds for node, turn in free.items() if turn.seconds is not None}
    middle = median(known.values()) if known else 0.0
    weight = {node: 1.0 if took <= middle else (middle / took) ** 2 for node, took in known.items()}
    weight |= dict.fromkeys((node for node, turn in free.items() if not turn.asked), 1.0)
    return sorted(weight, key=lambda node: (-log(1.0 - lots[node]) / max(weight[node], 1e-9), node))[:count]


def remember(turns: Mapping[NodeId, Turn], ended: Round, at: float) -> Mapping[NodeId, Turn]:
    """The turns after an attempt that ends; a node that is still silent is as slow as it was waited for, or slower."""
    before = {node: turns.get(node, Turn()) for node in ended.members}
    silent = waited(ended, min(at, ended.deadline))
    found: dict[NodeId, Turn] = {}
    for node, member in ended.members.items():
        seconds = before[node].seconds
        if member.update is not None:
            tempo = Tempo(member.update.seconds, member.waited, ended.opened.less.get(node, 1.0))
            seconds = tempo.beside + tempo.all_of_it
        elif member.part is Part.ASSIGNED:
            seconds = max(seconds or 0.0, silent)
        found[node] = Turn(ended.number, seconds)
    return {**turns, **found}
