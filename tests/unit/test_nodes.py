"""The register of nodes: invitations, joining, and who may be asked."""

import pytest

from tutti.core.errors import Conflict, Forbidden, NotFound
from tutti.core.registry import Choice
from tutti.domain import nodes
from tutti.domain.nodes import DataSummary, Register, Terms, common_schema, why_not
from tutti.domain.spec import BadSpec, DataSchema, JobSpec, mismatch

DIGITS = DataSchema("classification", (64,), 10)
HOLDS = DataSummary("digits", DIGITS, examples=100)
SPEC = JobSpec(dataset="digits", model=Choice("mlp"), name="digits-night")


def tell(state: Register, command: nodes.Command, now: float = 0.0) -> Register:
    for event in nodes.decide(state, command, now=now):
        state = nodes.evolve(state, event)
    return state


@pytest.fixture
def invited() -> Register:
    return tell(Register(), nodes.IssueInvite(token="t", uses=1, expires=100.0))


def test_an_invitation_lets_in_as_many_as_it_says(invited):
    state = tell(invited, nodes.Join(invite="t", node="a", secret="s"))
    assert state.nodes == {"a": "s"}
    with pytest.raises(Forbidden, match="used up"):
        tell(state, nodes.Join(invite="t", node="b", secret="s"))


def test_an_invitation_expires(invited):
    with pytest.raises(Forbidden, match="expired"):
        tell(invited, nodes.Join(invite="t", node="a", secret="s"), now=100.0)


def test_an_unknown_invitation_is_refused(invited):
    with pytest.raises(Forbidden, match="not known here"):
        tell(invited, nodes.Join(invite="other", node="a", secret="s"))


def test_names_are_unique_until_the_node_is_removed():
    state = tell(Register(), nodes.IssueInvite(token="t", uses=3, expires=100.0))
    state = tell(state, nodes.Join(invite="t", node="a", secret="s"))
    with pytest.raises(Conflict, match="joined already: choose another name"):
        tell(state, nodes.Join(invite="t", node="a", secret="s2"))
    state = tell(state, nodes.Remove(node="a"))
    assert tell(state, nodes.Join(invite="t", node="a", secret="s2")).nodes == {"a": "s2"}


def test_a_node_that_proves_itself_by_a_key_signs_with_that_and_nobody_else_does():
    state = tell(Register(), nodes.IssueInvite(token="t", uses=9, expires=100.0))
    state = tell(state, nodes.Join(invite="t", node="phone", secret="s", key="aa"))
    state = tell(state, nodes.Join(invite="t", node="clinic", secret="s2"))
    assert state.keys == {"phone": "aa"}
    assert nodes.decide(state, nodes.Pin(node="phone", key="aa"), now=1.0) == []
    for other in ("bb", ""):
        with pytest.raises(Conflict, match="phone has signed with another key before"):
            tell(state, nodes.Pin(node="phone", key=other))
    with pytest.raises(Conflict, match="another node signs with the key of clinic"):
        tell(state, nodes.Pin(node="clinic", key="aa"))
    with pytest.raises(Conflict, match="another node signs with this key"):
        tell(state, nodes.Join(invite="t", node="copy", secret="s3", key="aa"))
    state = tell(state, nodes.Remove(node="phone"))
    assert tell(state, nodes.Join(invite="t", node="copy", secret="s3", key="aa")).keys == {"copy": "aa"}


def test_removing_a_stranger_is_an_error():
    with pytest.raises(NotFound):
        tell(Register(), nodes.Remove(node="a"))


def test_a_drained_node_stays_so_until_it_is_undrained_or_removed():
    state = tell(Register(), nodes.IssueInvite(token="t", uses=2, expires=100.0))
    state = tell(state, nodes.Join(invite="t", node="a", secret="s"))
    drained = tell(state, nodes.Drain(node="a", by="ada"))
    assert drained.drained == {"a"}
    assert nodes.decide(drained, nodes.Drain(node="a"), now=1.0) == []
    assert tell(drained, nodes.Drain(node="a", on=False)).drained == frozenset()
    assert tell(drained, nodes.Remove(node="a")).drained == frozenset()
    with pytest.raises(NotFound, match="there is no node 'b'"):
        tell(state, nodes.Drain(node="b"))


@pytest.mark.parametrize(
    ("summary", "terms", "cohort", "reason"),
    [
        (HOLDS, Terms(), 1, None),
        (DataSummary("mnist", DIGITS, 9), Terms(), 1, "holds mnist, the job is on digits"),
        (
            DataSummary("digits", DataSchema("classification", (64,), 9), 9),
            Terms(),
            1,
            "its digits does not fit the job: it is classification of 64 into 9 classes, "
            "expected classification of 64 into 10 classes",
        ),
        (DataSummary("digits", DIGITS, 0), Terms(), 1, "has no examples to train on"),
        (HOLDS, Terms(open=False), 1, "paused by its owner, outside its hours, or short of battery"),
        (HOLDS, Terms(jobs=("day-*",)), 1, "its owner does not allow job 'digits-night'"),
        (HOLDS, Terms(jobs=("day-*", "*night")), 1, None),
        (HOLDS, Terms(models=("cnn",)), 1, "its owner does not allow model 'mlp'"),
        (HOLDS, Terms(min_cohort=3), 2, "its owner wants cohorts of 3 or more, the job starts with 2"),
    ],
)
def test_who_may_be_asked(summary, terms, cohort, reason):
    assert why_not(SPEC, DIGITS, summary, terms, cohort) == reason


def test_a_node_that_would_refuse_the_module_is_not_asked():
    spec = JobSpec(dataset="digits", model=Choice("module", {"entry": "hospital.models:Net"}))
    reason = why_not(spec, DIGITS, HOLDS, Terms(), 1)
    assert reason.startswith("its owner does not let jobs import module 'hospital.models'")
    assert why_not(spec, DIGITS, HOLDS, Terms(modules=("hospital.*",)), 1) is None


PATIENTS = DataSchema("classification", (2,), 2, ("age", "weight"), ("no", "yes"))


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (PATIENTS, None),
        (DataSchema("classification", (2,), 2), None),
        (
            DataSchema("classification", (2,), 2, ("age", "height"), ("no", "yes")),
            "it lacks the column 'weight' and has the column 'height'; expected 'age', 'weight'",
        ),
        (
            DataSchema("classification", (3,), 2, ("age", "bmi", "weight"), ("no", "yes")),
            "it has the column 'bmi'; expected 'age', 'weight'",
        ),
        (
            DataSchema("classification", (2,), 2, ("age", "weight"), ("yes", "no")),
            "its class names come in another order: 'yes', 'no'; expected 'no', 'yes'",
        ),
        (
            DataSchema("regression", (2,), 1, ("age", "weight")),
            "it is regression of 2 into 1 targets, expected classification of 2 into 2 classes",
        ),
    ],
)
def test_rows_that_do_not_belong_together_are_told_apart(found, reason):
    assert mismatch(PATIENTS, found) == reason


def test_the_kind_of_most_nodes_is_the_right_one():
    unnamed = DataSchema("classification", (2,), 2)
    assert common_schema("patients", {"a": unnamed, "b": PATIENTS, "c": unnamed}) == PATIENTS
    wrong = DataSchema("classification", (2,), 2, ("age", "height"), ("no", "yes"))
    with pytest.raises(BadSpec, match="'patients': bob: it lacks the column 'weight' and has the column 'height'"):
        common_schema("patients", {"ann": PATIENTS, "bob": wrong, "cyd": PATIENTS})
