"""The CIFAR-10 set-up of pfl-research's benchmark, on whatever torch computes on (https://arxiv.org/abs/2404.06430).

    python bench/cifar.py                              the whole run: 1,500 rounds; meant for a GPU
    python bench/cifar.py --rounds 3 --engine processes

1,000 users of 50 images, 50 a round, one local epoch, batches of 10, learning rate 0.1, a CNN of two convolutions (32
and 64) and a dense layer of 128. The images are noise of the same shape, which takes the same time: it is no measure of
accuracy. The peer in the same run is a plain PyTorch loop on the same device, over the steps of a few nodes.
"""

import argparse
import time
from statistics import median
from typing import Any

import numpy as np
from torch import nn

from _common import show

IMAGES, BATCH, LR = 50, 10, 0.1
LOOP_NODES = 5


def network() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64 * 14 * 14, 128), nn.ReLU(), nn.Linear(128, 10)),
    )


def federation(size: int) -> Any:
    from tutti.domain.spec import DataSchema
    from tutti.ports.training import Data, Examples
    from tutti.sim import Federation

    rng = np.random.default_rng(0)
    schema = DataSchema("classification", (3, 32, 32), 10)

    def rows(n: int) -> Examples:
        return Examples(rng.standard_normal((n, *schema.shape), dtype=np.float32), rng.integers(0, 10, n))

    return Federation.of({f"user-{k}": Data("noise", schema, rows(IMAGES), rows(0)) for k in range(size)})


def simulated(rounds: int, engine: str, mixed: bool, users: Any, cohort: int) -> dict[str, Any]:
    from tutti.sim import simulate

    training = {"batch_size": BATCH, "lr": LR, "mixed_precision": mixed}
    rules = {"min_nodes": len(users.nodes), "size": cohort, "quorum": 1}
    model = "module:entry=cifar:network"
    job = {"dataset": "noise", "model": model, "rounds": rounds, "training": training, "cohort": rules}
    job["evaluation"] = {"nodes": False}
    history = simulate(job, users, engine=engine, allow_modules=["cifar"])  # worker processes import this file
    typical = median(record.seconds for record in history.rounds[1:][-max(1, rounds - 1) :])
    return {"what": history.header.engine, "s/round": typical, "minutes for 1500": 1500 * typical / 60}


def plain_loop(users: Any, cohort: int) -> dict[str, Any]:
    import torch
    from torch.nn.functional import cross_entropy

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = network().to(device)
    parameters = list(net.parameters())
    weights = [p.data for p in parameters]
    x, y = (torch.from_numpy(array).to(device) for array in (users.rows.x, users.rows.y))

    def node(name: str) -> float:
        began = time.perf_counter()
        mine = torch.from_numpy(users.train[name]).to(device)
        for images, labels in zip(x[mine].split(BATCH), y[mine].split(BATCH), strict=True):
            loss = cross_entropy(net(images), labels)
            torch._foreach_add_(weights, torch.autograd.grad(loss, parameters), alpha=-LR)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    names = users.nodes[: LOOP_NODES + 1]
    typical = cohort * median([node(name) for name in names][1:])
    return {"what": f"plain loop, {device.type}", "s/round": typical, "minutes for 1500": 1500 * typical / 60}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1500)
    parser.add_argument("--engine", default="auto", help="auto, vectorised, vectorised:tf32=true, sequential …")
    parser.add_argument("--mixed-precision", action="store_true", help="bfloat16, where the device computes in it")
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--cohort", type=int, default=50)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    users, cohort = federation(options.users), options.cohort
    began = time.perf_counter()
    rows = [simulated(options.rounds, options.engine, options.mixed_precision, users, cohort)]
    took = time.perf_counter() - began
    rows.append(plain_loop(users, cohort))
    for row in rows:
        row["times the loop"] = rows[-1]["s/round"] / row["s/round"]
    show(rows, as_json=options.json, notes={"rounds": options.rounds, "minutes taken": took / 60})


if __name__ == "__main__":
    main()
