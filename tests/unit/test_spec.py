"""Reading job specifications: short forms, defaults, and errors that name the field."""

import pytest

from tutti.core.registry import Choice
from tutti.domain.spec import BadSpec, check_composition, load_spec

GOOD = {"dataset": "digits", "model": "mlp"}


def test_short_forms_and_tables_mean_the_same():
    short = load_spec({**GOOD, "strategy": "fedadam:server_lr=0.1"})
    table = load_spec({**GOOD, "strategy": {"name": "fedadam", "server_lr": 0.1}})
    full = load_spec({**GOOD, "strategy": {"name": "fedadam", "options": {"server_lr": 0.1}}})
    assert short == table == full


def test_nested_choices_are_read():
    spec = load_spec({**GOOD, "evaluation": {"data": "digits:split=test"}, "training": {"lr_schedule": "cosine"}})
    assert spec.evaluation.data == Choice("digits", {"split": "test"})
    assert spec.training.lr_schedule == Choice("cosine")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"model": "mlp"}, "missing required field `dataset`"),
        ({**GOOD, "rounds": 0}, r"Expected `int` >= 1 - at `\$.rounds`"),
        ({**GOOD, "rounds": "ten"}, r"Expected `int`, got `str` - at `\$.rounds`"),
        ({**GOOD, "training": {"lr": -1.0}}, r"at `\$.training.lr`"),
        ({**GOOD, "trainning": {}}, "unknown field `trainning`"),
        ({**GOOD, "dataset": "../../etc/passwd"}, r"at `\$.dataset`"),
        ({**GOOD, "strategy": {"server_lr": 1.0}}, r"at `\$.strategy.name`"),
    ],
)
def test_mistakes_are_named(raw, message):
    with pytest.raises(BadSpec, match=message):
        load_spec(raw)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cohort": {"size": 5, "min_nodes": 3}}, "set min_nodes to 5 or more"),
        ({"cohort": {"min_nodes": 3, "quorum": 4}}, "it could never close"),
        ({"early_stopping": {}}, "a target, a patience, or both"),
        ({"early_stopping": {"target": 0.9}, "evaluation": {"nodes": False}}, "needs an evaluation"),
    ],
)
def test_contradictions_are_refused_before_the_start(fields, message):
    with pytest.raises(BadSpec, match=message):
        check_composition(load_spec({**GOOD, **fields}))
