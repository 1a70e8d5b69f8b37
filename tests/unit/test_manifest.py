"""What a job's manifest says, and what it says that nobody can repeat."""

from tutti.core.registry import Choice
from tutti.domain import events as e
from tutti.domain.jobs import begin, evolve
from tutti.domain.spec import DataSchema, JobSpec
from tutti.services.manifest import Manifest, manifest_of_job

DATA = DataSchema("classification", (2,), 2)


def job(*rounds: dict[str, object]) -> Manifest:
    """Each round: who was asked, who was left out, who failed."""
    spec = JobSpec(dataset="clinic", model=Choice("linear"), rounds=3)
    state = begin(e.JobSubmitted(at=0.0, job="clinic-1", spec=spec, data=DATA))
    state = evolve(state, e.JobInitialised(at=1.0, model="m0", state="m0", parameters=6))
    for number, said in enumerate(rounds, start=1):
        cohort, lost, left_out = said["cohort"], said.get("lost", ()), said.get("left_out", {})
        opened = e.RoundOpened(
            at=2.0 * number,
            round=number,
            attempt=0,
            task="train",
            model=f"m{number - 1}",
            cohort=cohort,
            wanted=len(cohort),
            quorum=1,
            deadline=1e9,
            left_out=left_out,
        )
        state = evolve(state, opened)
        for node in cohort:
            if node in lost:
                state = evolve(state, e.NodeDropped(at=3.0, round=number, node=node, reason="lease ran out"))
            else:
                metrics = {"batch_size": said.get("batch", {}).get(node, 8.0)}
                update = {"digest": f"u{node}", "weight": 5, "metrics": metrics, "seconds": 0.1, "bytes": 24}
                state = evolve(state, e.UpdateAccepted(at=3.0, round=number, node=node, **update))
        closed = {"reason": "all came", "model": f"m{number}", "state": f"m{number}", "counted": {}, "metrics": {}}
        state = evolve(state, e.RoundClosed(at=2.0 * number + 1, round=number, attempt=0, **closed))
    arrivals = [e.NodeConnected(at=0.5, node=node, dataset="clinic", examples=20, digest=f"d{node}") for node in "abc"]
    changed = [e.NodeConnected(at=2.5, node="c", dataset="clinic", examples=30, digest="other")]
    return manifest_of_job(
        state, state.past, [*arrivals, *changed][: 4 if any("c" in r["cohort"] for r in rounds) else 3]
    )


def test_a_plain_job_has_no_incidents():
    found = job({"cohort": ("a", "b")}, {"cohort": ("a", "b")})
    assert (found.run, found.model, found.rounds, found.batch_size) == ("clinic-1", "m2", 2, 8)
    assert {node: held.digest for node, held in found.nodes.items()} == {"a": "da", "b": "db"}
    assert found.incidents == []


def test_nodes_that_were_never_drawn_belong_to_it():
    assert job({"cohort": ("a",), "left_out": {"b": "not drawn"}}).nodes.keys() == {"a", "b"}


def test_what_cannot_be_repeated_is_an_incident():
    assert job({"cohort": ("a", "b"), "lost": ("b",)}).incidents == ["round 1 went on without b: lease ran out"]
    late = job({"cohort": ("a",), "left_out": {"b": "not connected"}}, {"cohort": ("a", "b")})
    assert late.incidents == ["round 1 could not ask b: not connected"]
    assert job({"cohort": ("a", "c")}).incidents == ["c came with other data meanwhile"]


def test_different_batch_sizes_are_unknown():
    assert job({"cohort": ("a", "b"), "batch": {"a": 4.0}}).batch_size == 0
