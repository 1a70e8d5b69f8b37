"""BatchNorm in a real network under every strategy: its statistics are averaged, whatever weights are put through."""

import numpy as np
import pytest

from tutti.core.local import AS_FEDAVG
from tutti.core.params import Params, Role
from tutti.core.registry import Choice
from tutti.core.strategy import strategies
from tutti.domain.spec import DataSchema, load_spec
from tutti.ports.training import Trainer, models
from tutti.sim import Federation, simulate

torch = pytest.importorskip("torch", reason="BatchNorm needs pip install 'tutti[torch]'")

if "batch-norm" not in models:

    @models.register("batch-norm")
    def batch_norm(*, data: DataSchema) -> Trainer:
        """For tests."""
        from tutti.adapters.trainers.torch import TorchTrainer

        layers = torch.nn
        return TorchTrainer(
            lambda: layers.Sequential(layers.Linear(64, 8), layers.BatchNorm1d(8), layers.ReLU(), layers.Linear(8, 10)),
            data,
        )


BUILT = {name: strategies.build(Choice(name)) for name in strategies}
SERVER_ONLY = [name for name, made in BUILT.items() if made.local is AS_FEDAVG and not made.in_turn]


def trained(strategy: str, rounds: int = 1) -> Params:
    federation = Federation.divide("digits", 3, "dirichlet:0.3")
    training = {"lr": 0.05, "batch_size": 16}
    spec = {"dataset": "digits", "model": "batch-norm", "strategy": strategy, "rounds": rounds, "training": training}
    history = simulate(load_spec({**spec, "cohort": {"min_nodes": 3}}), federation)
    assert history.header.status == "completed", history.header.outcome
    return history.params


def of_role(params: Params, *roles: Role) -> np.ndarray:
    return np.concatenate([params.buffer[span] for role in roles for span in params.layout.spans_of(role)])


def test_which_strategies_these_are() -> None:
    assert {"fedavg", "fedavgm", "fedadagrad", "fedadam", "fedyogi", "diloco", "fedbuff"} <= set(SERVER_ONLY)


@pytest.mark.parametrize("strategy", SERVER_ONLY)
def test_statistics_are_those_of_fedavg_to_the_bit_under_every_server_optimiser(strategy: str) -> None:
    """The nodes of round 1 do the same work; only what becomes of the weights may differ."""
    choice = "fedbuff:buffer=3" if strategy == "fedbuff" else strategy
    plain, other = trained("fedavg"), trained(choice)
    statistics = (Role.BUFFER, Role.COUNTER)
    assert of_role(other, *statistics).tobytes() == of_role(plain, *statistics).tobytes()
    if strategy in ("fedadagrad", "fedadam", "fedyogi", "diloco"):
        assert (of_role(other, Role.WEIGHT) != of_role(plain, Role.WEIGHT)).mean() > 0.5
    assert other["1.num_batches_tracked"] > 0


@pytest.mark.parametrize("strategy", [name for name, made in BUILT.items() if made.rounds is None])
def test_variances_stay_positive_and_everything_finite(strategy: str) -> None:
    params = trained("fedbuff:buffer=3" if strategy == "fedbuff" else strategy, rounds=4)
    assert (params["1.running_var"] > 0).all()
    assert np.isfinite(params.buffer).all()


def test_fedbn_leaves_the_layer_at_home() -> None:
    params = trained("fedbn", rounds=2)
    untouched = {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1, "num_batches_tracked": 0}
    for name, start in untouched.items():
        assert (params[f"1.{name}"] == start).all()
    assert (params["0.weight"] != trained("fedbn")["0.weight"]).any()
