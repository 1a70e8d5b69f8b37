"""What each codec costs in accuracy and saves in bytes, beside the same job with every value sent as it is.

    python bench/codecs.py                 MNIST (100 nodes, IID and two digits each) and heart disease by hospital
    python bench/codecs.py --rounds 10     a shorter look; --seeds N for more runs

Updates (`codec`) by every codec, and models in steps (`model_codec`) by those that suit them. Accuracy is on the
official test rows; bytes are those of the values of an update or a step as they travel, on average over the run;
"encode" and "decode" are for an update of the 2NN's size (199,210 values).
"""

import argparse
from collections.abc import Iterator, Mapping
from statistics import mean
from typing import Any

import numpy as np

from _common import seconds, show
from tutti.core.codec import codecs
from tutti.core.registry import Choice
from tutti.domain.events import UpdateAccepted
from tutti.domain.spec import load_spec
from tutti.sim import Federation
from tutti.sim.simulation import Simulation

MODEL_CODECS = ("shuffle", "fp16", "int8", "int4")
CODECS = ("none", "shuffle", "fp16", "int8", "int4", "topk:0.05", "topk:0.01")
VALUES = 199_210
Row = dict[str, Any]

MNIST: Mapping[str, Any] = {
    "dataset": "mnist",
    "model": "2nn",
    "rounds": 50,
    "training": {"batch_size": 10, "lr": 0.1},
    "cohort": {"min_nodes": 100, "size": 10},
    "evaluation": {"every": 1000, "nodes": False, "data": "mnist:split=test"},
}
HEART: Mapping[str, Any] = {
    "dataset": "heart-disease",
    "model": "mlp:hidden=16",
    "rounds": 50,
    "normalize": True,
    "training": {"batch_size": 4, "lr": 0.01},
    "cohort": {"min_nodes": 4},
    "evaluation": {"every": 1000, "nodes": False, "data": "heart-disease:split=test"},
}
TASKS = {
    "mnist iid": (MNIST, 100, "iid"),
    "mnist two digits": ({**MNIST, "training": {"batch_size": 10, "lr": 0.05}}, 100, "shard:per_node=2"),
    "heart by hospital": (HEART, 4, "natural-id"),
}
DIGITS = {
    "digits": (
        {**MNIST, "dataset": "digits", "cohort": {"min_nodes": 4}, "evaluation": {"data": "digits:split=test"}},
        4,
        "iid",
    )
}


def run(
    task: Mapping[str, Any], nodes: int, partition: str, what: Mapping[str, str], seed: int, rounds: int
) -> tuple[float, float]:
    """Accuracy of the final model, and the mean bytes of an update or, with a `model_codec`, of a step."""
    spec = load_spec({**task, **what, "seed": seed, "rounds": rounds})
    federation = Federation.divide(spec.dataset, nodes, partition, seed=seed, held_out=0.0)
    steps: list[int] = []
    simulation = Simulation(spec, federation, "auto", 10, lambda _: steps.append(len(simulation.server.step)))
    try:
        history = simulation.run(None)
    finally:
        simulation.engine.close()
    sizes = [event.bytes for event in simulation.events if isinstance(event, UpdateAccepted)]
    sizes = [step for step in steps if step] or sizes
    return history.rounds[-1].evaluated["coordinator"]["accuracy"], mean(sizes)


def measure(tasks: Mapping[str, Any], seeds: int, rounds: int | None) -> Iterator[Row]:
    update = (np.random.default_rng(0).standard_normal(VALUES) * 1e-3).astype(np.float32)
    for name, (task, nodes, partition) in tasks.items():
        plain: Row = {}
        both = [("codec", codec) for codec in CODECS] + [("model_codec", codec) for codec in MODEL_CODECS]
        for what, codec in both:
            whole = rounds or task["rounds"]
            found = [run(task, nodes, partition, {what: codec}, seed, whole) for seed in range(seeds)]
            built = codecs.build(Choice.parse(codec))
            code = built.encode(update)
            accuracy, size = mean(each[0] for each in found), mean(each[1] for each in found)
            row = {
                "task": name,
                "what": what,
                "codec": codec,
                "accuracy %": 100 * accuracy,
                "bytes": round(size),
                "encode ms": 1e3 * seconds(lambda: built.encode(update)),  # noqa: B023 - called at once
                "decode ms": 1e3 * seconds(lambda: built.decode(code, VALUES)),  # noqa: B023
            }
            plain = plain or row
            yield {**row, "- none": row["accuracy %"] - plain["accuracy %"], "times smaller": plain["bytes"] / size}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--quick", action="store_true", help="one round on digits: does it work at all?")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    tasks, rounds = (DIGITS, 1) if options.quick else (TASKS, options.rounds)
    rows = list(measure(tasks, options.seeds, rounds))
    show(rows, as_json=options.json, notes={"seeds": options.seeds})


if __name__ == "__main__":
    main()
