"""Other systems' words for a job."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutti.apps.api.app import REGISTRIES
from tutti.apps.api.wishes import PLACES, UnknownField, read_job, read_join
from tutti.core.errors import UserError
from tutti.domain.spec import JobSpec


def job(plain: dict[str, object]) -> JobSpec:
    spec, ignored = read_job(plain, [], REGISTRIES)
    assert ignored == []
    return spec


def test_nothing_is_asked_for():
    spec = job({})
    assert (spec.dataset, spec.model.name, spec.rounds) == ("digits", "mlp", 10)


@pytest.mark.parametrize(
    "plain",
    [
        {"model": "MLP", "dataset": "Digits", "rounds": 3, "learning_rate": 0.5, "local_epochs": 2},
        {"modelType": "mlp", "datasetName": "digits", "totalRounds": 3, "learningRate": "0.5", "localEpochs": "2"},
        {"model_name": "mlp", "num_rounds": 3, "hyperparameters": {"lr": 0.5, "epochs": 2}},
        {"config": {"model": "mlp", "training": {"lr": 0.5, "epochs": 2}, "rounds": "3"}},
    ],
)
def test_one_job_in_many_words(plain):
    spec = job(plain)
    assert (spec.model.name, spec.dataset, spec.rounds) == ("mlp", "digits", 3)
    assert (spec.training.lr, spec.training.epochs) == (0.5, 2)


def test_names_are_recognised_by_their_letters():
    spec = job({"strategy": "FedAvg", "dataset": "digits", "model": "mlp:hidden=8x8"})
    assert (spec.strategy.name, spec.model.options) == ("fedavg", {"hidden": [8, 8]})


def test_remarks_change_nothing_and_are_named():
    assert read_job({"rounds": 1, "description": "a try", "x": {"Notes": 1}}, [], REGISTRIES)[1] == [
        "description",
        "Notes",
    ]


def test_a_field_that_means_nothing_is_refused_with_those_that_there_are():
    for plain, name in (({"rounds": 1, "ronds": 3}, "ronds"), ({"config": {"learning_rat": 1}}, "learning_rat")):
        with pytest.raises(UnknownField, match=rf"no field '{name}'; there are: .*learning_rate.*rounds"):
            read_job(plain, [], REGISTRIES)
    with pytest.raises(UnknownField, match=r"no field 'tokn'; there are: capabilities, .*token"):
        read_join({"node": "ada", "tokn": "x"})


@pytest.mark.parametrize("digits", ["9" * 400, "9" * 5000, "1e999", "-" * 33])
def test_numbers_without_end_are_a_users_error(digits):
    for field in ("rounds", "lr", "seed", "max_weight"):
        with pytest.raises(UserError):
            read_job({field: digits}, [], REGISTRIES)


def test_a_name_is_made_usable():
    assert job({"name": "My first job!"}).name == "My-first-job"


@pytest.mark.parametrize("plain", [{"node_id": "ada"}, {"deviceId": "ada"}, {"name": "ada", "capabilities": {}}])
def test_a_node_by_any_field(plain):
    assert read_join(plain).node == "ada"


def test_a_nameless_node_gets_a_name():
    assert read_join({}).node.startswith("node-")


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(PLACES)), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(sorted({*PLACES, "training", "cohort", "config"})), json, max_size=6))
def test_any_body_is_a_job_or_a_users_error(plain):
    with suppress(UserError):
        assert isinstance(read_job(plain, [], REGISTRIES)[0], JobSpec)
