"""Flower's and pfl-research's simulators on the job of sim.py; run with the interpreter that has them.

    python _sim_peers.py flower|pfl JOB.npz

JOB.npz holds rows `x` and `y`, test rows, the initial parameters in one vector, and `orders` (rounds, cohort, rows):
which rows each node trains on and in which order, so that all simulators take the very same steps. Prints JSON:
seconds of every round, seconds from the start of the process to the end of the first, memory and test accuracy. pfl
runs in as many processes as torchrun starts, and Flower's clients on one CPU each, as both recommend.
"""

import json
import os
import sys
import time

BEGAN = time.perf_counter()
os.environ.update(FLWR_TELEMETRY_ENABLED="0", RAY_USAGE_STATS_ENABLED="0", PFL_PYTORCH_DEVICE="cpu")

from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.functional import cross_entropy  # noqa: E402


def network(model: str) -> nn.Sequential:
    if model == "2nn":
        layers = [nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10)]
        return nn.Sequential(nn.Flatten(), *layers)
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(3136, 512),
        nn.ReLU(),
        nn.Linear(512, 10),
    )


class Job:
    """What to train, read once in each process; arrays are mapped, not copied."""

    def __init__(self, file: str) -> None:
        with np.load(file) as loaded:
            self.__dict__.update({name: loaded[name] for name in loaded.files})
        self.x, self.y = torch.from_numpy(self.x), torch.from_numpy(self.y)
        self.model, self.epochs = str(self.model), int(self.epochs)
        self.batch, self.lr, (self.rounds, self.cohort, _) = int(self.batch), float(self.lr), self.orders.shape

    def fresh(self) -> nn.Sequential:
        net = network(self.model)
        nn.utils.vector_to_parameters(torch.from_numpy(self.initial.copy()), net.parameters())
        return net

    def rows(self, round: int, slot: int) -> tuple[torch.Tensor, torch.Tensor]:
        index = torch.from_numpy(self.orders[round, slot])
        return self.x[index], self.y[index]

    def accuracy(self, net: nn.Module) -> float:
        with torch.inference_mode():
            found = torch.cat([net(part).argmax(1) for part in torch.from_numpy(self.test_x).split(1024)])
        return float((found.numpy() == self.test_y).mean())


def tell(job: Job, ends: list[float], first: float, net: nn.Module, processes: int = 1) -> None:
    """`ends` are the moments at which rounds ended, that of the start included; `processes` are like this one."""
    seconds = np.diff(ends).tolist()
    mb = processes * memory(os.getpid())
    print(json.dumps({"seconds": seconds, "first": first, "accuracy": job.accuracy(net), "MB": mb}), flush=True)


def memory(pid: int) -> float:
    """MB of a process and all that descend from it, shared pages counted once."""
    folder = Path(f"/proc/{pid}")
    try:
        lines = (folder / "smaps_rollup").read_text().splitlines()
        children = [int(child) for task in folder.glob("task/*/children") for child in task.read_text().split()]
    except OSError:
        return 0.0  # it has ended
    own = next((int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:")), 0.0)
    return own + sum(map(memory, children))


# -- Flower ------------------------------------------------------------------------------------------------

_jobs: dict[str, Job] = {}


def flower(file: str) -> None:
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    client, server, job = ClientApp(), ServerApp(), Job(file)

    @client.train()
    def train(message: Message, context: Any) -> Message:
        mine = _jobs.get(file) or _jobs.setdefault(file, Job(file))
        torch.set_num_threads(1)
        net, config = network(mine.model), message.content["config"]
        net.load_state_dict(message.content["arrays"].to_torch_state_dict())
        x, y = mine.rows(config["server-round"] - 1, config["slot"])
        optimizer = torch.optim.SGD(net.parameters(), lr=mine.lr)
        for images, labels in zip(x.split(mine.batch), y.split(mine.batch), strict=True):
            optimizer.zero_grad()
            cross_entropy(net(images), labels).backward()
            optimizer.step()
        content = {"arrays": ArrayRecord(net.state_dict()), "metrics": MetricRecord({"num-examples": 600})}
        return Message(content=RecordDict(content), reply_to=message)

    ends: list[float] = []
    firsts: list[float] = []

    class Timed(FedAvg):
        """FedAvg that tells each node of a cohort which of the job's nodes it is."""

        def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
            ends.append(time.perf_counter())
            if server_round == 2:
                firsts.append(ends[-1] - BEGAN)
            messages = super().configure_train(server_round, arrays, config, grid)
            for slot, message in enumerate(messages):
                content = RecordDict({"arrays": arrays, "config": type(config)({**config, "slot": slot})})
                yield Message(content=content, message_type="train", dst_node_id=message.metadata.dst_node_id)

    @server.main()
    def main(grid: Any, context: Any) -> None:
        strategy = Timed(
            fraction_train=0.0001, fraction_evaluate=0.0, min_train_nodes=job.cohort, min_available_nodes=100
        )
        found = strategy.start(grid, ArrayRecord(job.fresh().state_dict()), num_rounds=job.rounds)
        ends.append(time.perf_counter())
        net = network(job.model)
        net.load_state_dict(found.arrays.to_torch_state_dict())
        tell(job, ends, firsts[0], net)

    options = {"init_args": {"include_dashboard": False, "logging_level": "error"}}
    run_simulation(server, client, 100, backend_config={"client_resources": {"num_cpus": 1.0}, **options})


# -- pfl-research ------------------------------------------------------------------------------------------


def pfl(file: str) -> None:
    torch.set_num_threads(1)
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
    from pfl.internal.ops import pytorch_ops
    from pfl.metrics import Weighted
    from pfl.model.pytorch import PyTorchModel

    job = Job(file)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = job.fresh()

        def loss(self, x: torch.Tensor, y: torch.Tensor, eval: bool = False) -> torch.Tensor:
            return cross_entropy(self.net(x), y)

        def metrics(self, x: torch.Tensor, y: torch.Tensor, eval: bool = True) -> dict[str, Any]:
            return {"n": Weighted(0, len(y))}

    net = Net()
    model = PyTorchModel(net, torch.optim.SGD, torch.optim.SGD(net.parameters(), lr=1.0))
    ends = [time.perf_counter()]
    firsts: list[float] = []

    class Watch(TrainingProcessCallback):
        def after_central_iteration(self, metrics: Any, model: Any, *, central_iteration: int) -> Any:
            ends.append(time.perf_counter())
            if not firsts:
                firsts.append(ends[-1] - BEGAN)
            return False, type(metrics)()

    turns = iter([(round, slot) for round in range(job.rounds + 1) for slot in range(job.cohort)])
    # pfl repeats a user's rows in one order in every epoch; here each epoch has its own, as the job says
    users = FederatedDataset(lambda turn: Dataset(job.rows(*turn), user_id=str(turn)), lambda: next(turns))
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(job.rounds, 10**9, job.cohort, 0),
        backend=SimulatedBackend(users, None),
        model=model,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=job.lr, local_batch_size=job.batch
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=1000),
        callbacks=[Watch()],
        send_metrics_to_platform=False,
    )
    assert pytorch_ops.distributed is not None
    if pytorch_ops.distributed.global_rank == 0:
        tell(job, ends, firsts[0], net.net, pytorch_ops.distributed.world_size)


if __name__ == "__main__":
    {"flower": flower, "pfl": pfl}[sys.argv[1]](sys.argv[2])
