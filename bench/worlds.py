"""The protocol of a fleet on virtual time: real coordinator and node runtimes, ten thousand nodes, a thousand rounds.

    python bench/worlds.py
    python bench/worlds.py --by-speed    twenty nodes of very different speed, that train: all of them, by speed or not,
                                         and five a round, drawn by chance or fast ones first

Nodes do not train, but receive, store, hand in and are counted as they would be. The peer in the same run is the same
world with a tenth of the nodes: what a round costs more is work that grows with the fleet. BENCH_PROFILE=file keeps
cProfile's figures of the large world.
"""

import argparse
import cProfile
import os
import resource
import tempfile
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from _common import show
from tutti.domain import events as e
from tutti.sim.worlds import load_world, simulate_world


def measure(nodes: int, rounds: int, cohort: int, folder: Path) -> dict[str, Any]:
    world = load_world(
        {
            "nodes": nodes,
            "train": False,
            "examples": "lognormal:median=100",
            "heartbeat": 300,
            "machine": {"speed": "lognormal:median=20,sigma=0.5"},
            "network": {"latency": "uniform:low=0.02,high=0.2"},
        }
    )
    job = {
        "dataset": "digits",
        "model": "linear",
        "rounds": rounds,
        "cohort": {"min_nodes": max(cohort, nodes // 2), "size": cohort},
        "evaluation": {"nodes": False},
    }
    started: list[float] = []
    cpu = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_utime  # noqa: E731
    before = cpu()
    done = simulate_world(world, job, folder=folder, watch=lambda job: started.append(cpu()))
    assert done.job.status == "completed", done.job.outcome
    a_round = (started[-1] - started[0]) / (len(started) - 1)
    return {
        "nodes": nodes,
        "rounds": done.job.rounds_done,
        "cohort": cohort,
        "seconds": done.took,
        "rounds/s": done.job.rounds_done / done.took,
        "CPU ms a round": 1e3 * a_round,
        "CPU s to the first": started[0] - before,
        "world hours": done.seconds / 3600,
        "updates": sum(isinstance(each.event, e.UpdateAccepted) for each in done.events),
        "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "trace": done.digest()[:12],
    }


def by_speed(rounds: int) -> list[dict[str, Any]]:
    """The same job on the same fleet; `ratio` is of the world's time to that of the first with so large a cohort."""
    fleet = {"nodes": 20, "machine": {"speed": "lognormal:median=100,sigma=1"}, "partition": "dirichlet:0.3"}
    world = load_world(fleet)
    rows: list[dict[str, Any]] = []
    all_of_them = ({}, {"by_speed": True}, {"by_speed": True, "less_of": "batch"})
    five = tuple({"size": 5, **fast} for fast in ({}, {"prefer_fast": 0.6}, {"prefer_fast": 0.6, "by_speed": True}))
    for rules in (*all_of_them, *five):
        job = {
            "dataset": "digits",
            "model": "mlp",
            "rounds": rounds,
            "cohort": {"min_nodes": 20, **rules},
            "training": {"epochs": 5, "batch_size": 10, "lr": 0.05},
            "evaluation": {"nodes": False, "data": "digits:split=test"},
        }
        done = simulate_world(world, job)
        opened = [each.event for each in done.events if isinstance(each.event, e.RoundOpened)]
        asked = Counter(node for event in opened for node in event.cohort)
        first = next((row for row in rows if row["size"] == rules.get("size", 20)), {"world seconds": done.seconds})
        rows.append(
            {
                "size": rules.get("size", 20),
                "by_speed": rules.get("less_of", "steps") if rules.get("by_speed") else "",
                "prefer_fast": rules.get("prefer_fast", 0),
                "rounds": done.job.rounds_done,
                "world seconds": done.seconds,
                "a round": (done.job.past[-1].closed_at - done.job.past[0].closed_at) / max(1, rounds - 1),
                "accuracy %": 100 * done.job.evaluations[rounds]["coordinator"]["accuracy"],
                "asked least / most": f"{min(asked.values())} / {max(asked.values())}",
                "ratio": done.seconds / first["world seconds"],
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--cohort", type=int, default=50)
    parser.add_argument("--by-speed", action="store_true")
    parser.add_argument("--quick", action="store_true", help="twenty nodes, three rounds: does it work at all?")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.by_speed:
        return show(by_speed(min(options.rounds, 30)), as_json=options.json, notes={})
    nodes, rounds, cohort = (20, 3, 5) if options.quick else (options.nodes, options.rounds, options.cohort)
    memory = Path("/dev/shm")  # files that nobody needs tomorrow
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        small = measure(max(nodes // 10, 2 * cohort), min(rounds, 100), cohort, Path(folder))
        profile = os.environ.get("BENCH_PROFILE")
        with cProfile.Profile() if profile else nullcontext() as profiler:
            large = measure(nodes, rounds, cohort, Path(folder))
        if profiler is not None:
            profiler.dump_stats(profile)
    rows = [small, large]
    for row in rows:
        row["a round / small fleet's"] = row["CPU ms a round"] / small["CPU ms a round"]
    show(rows, as_json=options.json, notes={"goal": "10,000 nodes x 1,000 rounds in minutes"})


if __name__ == "__main__":
    main()
