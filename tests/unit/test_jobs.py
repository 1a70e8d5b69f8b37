"""The job machine by example: one life, and every refusal with its reason."""

import math
import pickle

import pytest

from tutti.core.errors import Conflict
from tutti.core.registry import Choice
from tutti.core.sampling import Pool
from tutti.domain import commands as c
from tutti.domain import events as e
from tutti.domain import jobs
from tutti.domain.history import KEPT_IN_FULL, attempts_at
from tutti.domain.jobs import Job, Status
from tutti.domain.spec import CohortRules, DataSchema, EarlyStopping, Evaluation, JobSpec

DATA = DataSchema("classification", (4,), 2)


class Story:
    """A job told command by command; `now` moves by one second each time."""

    def __init__(self, spec: JobSpec | None = None, **fields) -> None:
        fields = {"dataset": "toy", "model": Choice("linear"), "rounds": 2, **fields}
        self.now = 0.0
        self.log: list[e.JobEvent] = [jobs.submit("toy-1", spec or JobSpec(**fields), DATA, now=0.0)]
        self.state: Job = jobs.replay(self.log)

    def tell(self, command: c.Command, seconds: float = 1.0) -> list[e.JobEvent]:
        self.now += seconds
        events = jobs.decide(self.state, command, now=self.now)
        for event in events:
            self.state = jobs.evolve(self.state, event)
        self.log += events
        return events

    def begin(self) -> "Story":
        self.tell(c.Initialise(model="m0", state="m0", parameters=10))
        return self

    def open(self, *nodes: str) -> "Story":
        self.tell(c.Open(candidates=nodes))
        return self

    def submit(self, node: str, **fields) -> list[e.JobEvent]:
        round = self.state.round
        number, attempt = (round.number, round.opened.attempt) if round else (1, 0)
        defaults = {"round": number, "attempt": attempt, "digest": f"u-{node}", "weight": 5, "metrics": {}}
        return self.tell(c.SubmitUpdate(node=node, **{**defaults, **fields}))

    def close(self, model: str = "m1", **fields) -> list[e.JobEvent]:
        round = self.state.round
        assert round is not None
        counted = {update.node: update.weight for update in round.accepted}
        close = c.Close(round=round.number, attempt=round.opened.attempt, counted=counted, model=model, state=model)
        return self.tell(close)


def only_reason(events: list[e.JobEvent]) -> str:
    (event,) = events
    assert isinstance(event, e.UpdateRefused)
    return event.reason


def test_a_whole_life():
    story = Story(evaluation=Evaluation(nodes=False), cohort=CohortRules(min_nodes=2))
    assert isinstance(jobs.react(story.state, now=0.0), c.MakeInitialModel)
    story.begin()
    assert jobs.react(story.state, now=1.0) == c.GatherCohort("train", 1)
    for number in (1, 2):
        story.open("b", "a")
        assert jobs.react(story.state, now=story.now) == c.Assign(("a", "b"))
        story.submit("b", metrics={"train_loss": 1.0, "train_examples": 1})
        story.submit("a", metrics={"train_loss": 2.0, "train_examples": 3})
        instruction = jobs.react(story.state, now=story.now)
        assert isinstance(instruction, c.Aggregate)
        assert [update.node for update in instruction.updates] == ["a", "b"]
        closed = story.close(f"m{number}")[0]
        assert isinstance(closed, e.RoundClosed)
        assert closed.metrics == {"loss": pytest.approx(1.75), "examples": 4.0}
    (completed,) = story.tell(c.Tick())
    assert completed == e.JobCompleted(at=story.now, reason="2 rounds done", model="m2", best_round=2)
    assert story.state.status is Status.COMPLETED
    assert jobs.react(story.state, now=story.now) is None
    assert jobs.replay(story.log) == story.state
    assert story.state.model_of(0) == "m0"
    assert story.state.model_of(1) == "m1"


def test_nodes_measure_the_model_they_receive_and_the_last_one_at_the_end():
    story = Story(rounds=1).begin().open("a")
    assert jobs.nodes_evaluate(story.state)
    story.submit("a", metrics={"eval_accuracy": 0.5, "eval_examples": 10})
    closed, measured = story.close("m1")
    assert isinstance(closed, e.RoundClosed)
    assert measured == e.ModelEvaluated(at=story.now, round=0, by="nodes", metrics={"accuracy": 0.5, "examples": 10.0})
    assert jobs.react(story.state, now=story.now) == c.GatherCohort("evaluate", 2)
    story.open("a")
    story.submit("a", digest="", metrics={"eval_accuracy": 0.9, "eval_examples": 10})
    story.close("m1")
    story.tell(c.Tick())
    assert story.state.evaluations[1]["nodes"]["accuracy"] == 0.9
    assert story.state.best == (1, 0.9)


def test_a_missing_final_measure_does_not_hold_the_job_up():
    story = Story(rounds=1).begin().open("a")
    story.submit("a")
    story.close("m1")
    (completed,) = story.tell(c.SkipEvaluation(reason="no node was there"))
    assert isinstance(completed, e.JobCompleted)
    assert "no node was there" in completed.reason


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"round": 7}, "the update is for round 7 attempt 0, round 1 attempt 0 is open"),
        ({"attempt": 3}, "round 1 attempt 3, round 1 attempt 0 is open"),
        ({"fault": "'w' holds NaN"}, "'w' holds NaN"),
        ({"weight": 0}, "the weight is 0"),
        ({"metrics": {"loss": math.nan}}, "the metric 'loss' is nan, expected a finite number"),
        ({"metrics": {"loss": -1e39}}, "the metric 'loss' is -1e+39, expected at most 1e+38 in size"),
        ({"metrics": {"eval_examples": -1.0}}, "'eval_examples' is -1, expected a number of examples, 0 or more"),
        ({"metrics": {f"m{i}": 0.0 for i in range(65)}}, "65 metrics came, at most 64 are taken"),
        ({"metrics": {"x" * 65: 0.0}}, "has a name of 65 characters, expected 64"),
        ({"seconds": math.inf}, "the work took inf s, expected 0 to 604800 s"),
    ],
)
def test_bad_submissions_are_refused_with_the_reason(fields, reason):
    story = Story(cohort=CohortRules(min_nodes=2)).begin().open("a", "b")
    assert reason in only_reason(story.submit("a", **fields))


def test_metrics_out_of_bounds_end_the_nodes_part_in_the_round():
    story = Story(cohort=CohortRules(min_nodes=2)).begin().open("a", "b")
    (refused,) = story.submit("a", metrics={"loss": 1e39})
    assert refused.final


def test_no_node_can_make_a_mean_overflow_or_outweigh_the_others():
    story = Story(cohort=CohortRules(min_nodes=3, max_weight=100)).begin().open("a", "b", "c")
    for node, loss in (("a", 1.0), ("b", 3.0), ("c", 1e38)):
        examples = 1e38 if node == "c" else 100.0
        story.submit(node, metrics={"eval_loss": loss, "eval_examples": examples})
    _, measured = story.close()
    assert isinstance(measured, e.ModelEvaluated)
    assert measured.metrics["examples"] == 300.0
    assert measured.metrics["loss"] == pytest.approx(1e38 / 3)


def test_a_mean_that_is_not_finite_is_left_out():
    """Such as of updates that an older version accepted."""
    story = Story(cohort=CohortRules(min_nodes=2)).begin().open("a", "b")
    for node, loss in (("a", 1e308), ("b", -1e308)):
        metrics = {"eval_loss": loss, "eval_accuracy": 0.5, "eval_examples": 10.0}
        update = e.UpdateAccepted(at=story.now, round=1, node=node, digest=node, weight=1, metrics=metrics)
        story.state = jobs.evolve(story.state, update)
        story.log.append(update)
    _, measured = story.close()
    assert isinstance(measured, e.ModelEvaluated)
    assert measured.metrics == {"accuracy": 0.5, "examples": 20.0}


def test_made_up_metrics_do_not_displace_those_that_most_nodes_report():
    story = Story(cohort=CohortRules(min_nodes=3)).begin().open("a", "b", "c")
    for node in ("b", "c"):
        story.submit(node, metrics={"train_loss": 1.0, "train_examples": 5.0})
    story.submit("a", metrics={"train_examples": 5.0, **{f"train_{i:02}": 0.0 for i in range(63)}})
    closed = story.close()[0]
    assert isinstance(closed, e.RoundClosed)
    assert closed.metrics["loss"] == 1.0


def test_a_diverged_model_is_measured_by_what_is_a_number():
    story = Story(evaluation=Evaluation(nodes=False, data=Choice("digits"))).begin()
    (measured,) = story.tell(c.RecordEvaluation(round=0, metrics={"loss": math.inf, "accuracy": 0.1}))
    assert measured.metrics == {"accuracy": 0.1}


def test_strangers_and_repetitions_are_refused_and_change_nothing():
    story = Story(cohort=CohortRules(min_nodes=2)).begin().open("a", "b")
    assert "c was not asked in round 1" in only_reason(story.submit("c"))
    story.submit("a")
    assert "the same update came again" in only_reason(story.submit("a"))
    assert "a second, other update came" in only_reason(story.submit("a", digest="u-other"))
    assert story.state.round is not None
    assert story.state.round.came == 1


def test_a_faulty_update_ends_the_nodes_part_in_the_round():
    story = Story(cohort=CohortRules(min_nodes=2)).begin().open("a", "b")
    story.submit("a", fault="NaN")
    assert "was refused in this round already: NaN" in only_reason(story.submit("a"))


def test_refusals_are_answered_for_ever_but_logged_a_bounded_number_of_times():
    story = Story().begin().open("a")
    for _ in range(jobs.REFUSALS_KEPT):
        story.submit("stranger")
    with pytest.raises(Conflict, match="was not asked"):
        story.submit("stranger")


def test_weights_are_capped_or_equal():
    capped = Story(cohort=CohortRules(max_weight=100)).begin().open("a")
    assert capped.submit("a", weight=10**9)[0].weight == 100
    equal = Story(cohort=CohortRules(weighting="equal")).begin().open("a")
    assert equal.submit("a", weight=50)[0].weight == 1


def test_an_update_that_comes_while_the_round_closes_is_late():
    rules = CohortRules(min_nodes=3, size=1, quorum=1, over_select=2.0)
    story = Story(cohort=rules).begin().open("a", "b", "c")
    story.submit("c")
    assert "too late, round 1 is closing" in only_reason(story.submit("a"))


def test_close_must_name_exactly_the_accepted_updates():
    story = Story(cohort=CohortRules(min_nodes=2)).begin().open("a", "b")
    story.submit("a")
    story.submit("b")
    wrong = c.Close(round=1, attempt=0, counted={"a": 5}, model="m1", state="m1")
    with pytest.raises(Conflict, match="not ready to close"):
        story.tell(wrong)
    story.close("m1")
    assert story.tell(c.Close(round=1, attempt=0, counted={"a": 5, "b": 5}, model="m1", state="m1")) == []


def test_a_failed_round_is_tried_again_with_another_attempt_and_then_fails_the_job():
    story = Story(cohort=CohortRules(retries=1, deadline=10.0)).begin()
    for attempt in (0, 1):
        story.open("a")
        assert story.state.round is not None
        assert story.state.round.opened.attempt == attempt
        story.tell(c.Drop(node="a", reason="gone"))
        story.tell(c.Tick())
    assert story.state.status is Status.FAILED
    assert "round 1 failed 2 times" in story.state.outcome
    assert len(story.state.past) == 2


def play_round(story: Story, seconds: dict[str, float]) -> None:
    """Open a round and play it to its end, each node answering so many seconds after it was asked."""
    story.open(*seconds)
    round = story.state.round
    assert round is not None
    for node in sorted(seconds, key=lambda each: seconds[each]):
        if round.opened.at + seconds[node] < round.deadline:
            story.now = round.opened.at + seconds[node] - 1.0
            story.submit(node)
    if isinstance(jobs.react(story.state, now=story.now), c.Aggregate):
        story.close(f"m{round.number}")
    else:
        story.now = round.deadline
    story.tell(c.Tick())


FOUR = JobSpec(
    dataset="toy",
    model=Choice("linear"),
    rounds=6,
    cohort=CohortRules(min_nodes=4),
    evaluation=Evaluation(nodes=False),
)


def test_a_slow_node_that_the_quorum_needs_does_not_fail_the_job():
    story = Story(FOUR).begin()
    while not story.state.final:
        play_round(story, {"a": 5.0, "b": 5.0, "c": 5.0, "d": 40.0})
    assert story.state.status is Status.COMPLETED
    assert [summary.attempt for summary in story.state.past] == [0] * 6


def test_a_node_that_grows_slow_is_given_twice_the_time_after_each_missed_deadline():
    story = Story(FOUR).begin()
    for _ in range(3):
        play_round(story, {"a": 5.0, "b": 5.0, "c": 5.0, "d": 5.0})
    while not story.state.final:
        play_round(story, {"a": 5.0, "b": 5.0, "c": 5.0, "d": 100.0})
    assert story.state.status is Status.COMPLETED
    allowed = [summary.deadline - summary.opened_at for summary in story.state.past]
    assert allowed == pytest.approx([600.0, 30.0, 30.0, 30.0, 60.0, 120.0, 200.0, 200.0])


def test_a_restart_during_a_round_leaves_no_trace_in_later_deadlines():
    story = Story(rounds=3, evaluation=Evaluation(nodes=False), cohort=CohortRules(min_nodes=4)).begin()
    story.open("a", "b", "c", "d")
    story.tell(c.Extend(reason="restart"), seconds=3_000.0)
    for node in "abcd":
        story.submit(node)
    story.close()
    story.open("a", "b", "c", "d")
    assert story.state.round is not None
    assert story.state.round.deadline - story.now == 30.0


def test_pausing_lets_the_open_round_finish_and_opens_no_other():
    story = Story().begin().open("a")
    story.tell(c.Pause(reason="lunch"))
    story.submit("a")
    story.close("m1")
    assert jobs.react(story.state, now=story.now) is None
    with pytest.raises(Conflict):
        story.open("a")
    story.tell(c.Resume())
    assert jobs.react(story.state, now=story.now) == c.GatherCohort("train", 2)


def test_stopping_keeps_the_last_closed_model():
    story = Story().begin().open("a")
    story.submit("a")
    story.close("m1")
    story.open("a")
    story.tell(c.Stop())
    assert (story.state.status, story.state.model, story.state.round) == (Status.STOPPED, "m1", None)
    with pytest.raises(Conflict, match="is stopped"):
        story.tell(c.Resume())


def test_too_few_nodes_fail_the_job_only_after_its_patience():
    story = Story(cohort=CohortRules(min_nodes=3, wait=60.0)).begin()
    with pytest.raises(Conflict, match="needs 3 nodes, 1 are ready"):
        story.open("a")
    assert story.tell(c.Tick(), seconds=50.0) == []
    (failed,) = story.tell(c.Tick(), seconds=20.0)
    assert failed.reason == "too few nodes: 3 are needed, waited 60 s"


def run_to(story: Story, scores: list[float]) -> Story:
    story.begin()
    for number, score in enumerate(scores):
        if jobs.next_task(story.state) != "train":
            break
        story.tell(c.RecordEvaluation(round=number, metrics={"accuracy": score}))
        if jobs.next_task(story.state) != "train":
            break
        story.open("a")
        story.submit("a")
        story.close(f"m{number + 1}")
    return story


METRICS = {"train_loss": 1.5, "train_accuracy": 0.5, "train_examples": 100.0}
FLEET = [f"node-{number:04}.example" for number in range(1_000)]


def fleet_story(rounds: int) -> Story:
    """Rounds in which a hundred of a thousand nodes train."""
    story = Story(rounds=rounds, cohort=CohortRules(min_nodes=100, size=100)).begin()
    digest = "0123456789abcdef" * 4
    for number in range(rounds):
        story.open(*FLEET)
        assert story.state.round is not None
        for node in story.state.round.opened.cohort:
            story.submit(node, metrics=METRICS, digest=digest)
        story.close(f"{number:064}")
    return story


def test_what_is_kept_of_an_old_round_does_not_grow_with_the_nodes():
    story = fleet_story(KEPT_IN_FULL + 3)
    old, *_, newest = story.state.past
    assert len(pickle.dumps(old)) < 5_000
    assert (old.detail, old.cohort, old.accepted, old.model) == (None, 100, 100, f"{0:064}")
    assert len(newest.counted) == 100
    assert sum(summary.detail is not None for summary in story.state.past) == KEPT_IN_FULL
    assert story.state.model_of(1) == f"{0:064}"
    full = [jobs.replay(story.log[: story.log.index(end) + 1]).past[-1] for end in story.log if is_closing(end)]
    assert attempts_at(story.log, (1, 2)) == full[:2]
    of_two = [event for event in story.log if getattr(event, "round", 0) == 2]
    assert attempts_at(of_two, (2,)) == full[1:2]


def is_closing(event: e.JobEvent) -> bool:
    return isinstance(event, e.RoundClosed)


def test_every_attempt_at_a_round_can_be_rebuilt_from_the_events():
    story = Story(cohort=CohortRules(min_nodes=2)).begin().open("a", "b")
    story.submit("a")
    story.submit("b", fault="NaN")
    story.tell(c.Tick())
    story.open("a", "b")
    story.tell(c.Drop(node="a", reason="gone"))
    story.tell(c.Stop())
    assert attempts_at(story.log, {1}) == list(story.state.past)
    assert len(story.state.past) == 2
    assert attempts_at(story.log, {2}) == []


def test_contributions_are_summed_over_the_updates_that_made_models():
    story = Story(cohort=CohortRules(min_nodes=2)).begin()
    for number in (1, 2):
        story.open("a", "b")
        story.submit("a", weight=3, seconds=2.0, bytes=10)
        story.submit("b", weight=1, seconds=1.0, bytes=10)
        story.close(f"m{number}")
    story.open("a", "b")
    story.submit("a", weight=5)
    given = story.state.contributions
    assert {node: (each.updates, each.weight, each.seconds, each.bytes) for node, each in given.items()} == {
        "a": (2, 6, 4.0, 20),
        "b": (2, 2, 2.0, 20),
    }
    assert (given["a"].first_at, given["a"].last_at) == (3.0, 7.0)


def test_an_opening_names_a_hundred_nodes_and_counts_the_others():
    story = Story(cohort=CohortRules(min_nodes=2, size=2)).begin()
    away = {f"away-{number:04}": "not connected" for number in range(900)}
    shapes = {f"odd-{number:02}": f"holds {number}" + "x" * 1_000 for number in range(3)}
    story.tell(c.Open(candidates=["a", "b", "c"], left_out={**away, **shapes}))
    assert story.state.round is not None
    opened = story.state.round.opened
    assert len(opened.left_out) == jobs.LEFT_OUT_NAMED
    assert "not drawn" in opened.left_out.values()
    assert opened.left_out["odd-00"].startswith("holds 0x")
    assert opened.left_out_more == {"not connected": 804}
    assert len(pickle.dumps(opened)) < 8_000


def test_of_many_candidates_those_not_drawn_are_counted_and_a_hundred_named():
    story = Story(cohort=CohortRules(min_nodes=2, size=3)).begin()
    everyone = [f"n{number:04}" for number in range(5_000)]
    story.tell(c.Open(candidates=reversed(everyone)))
    assert story.state.round is not None
    opened = story.state.round.opened
    assert opened.candidates == 5_000
    assert list(opened.left_out) == [node for node in everyone if node not in opened.cohort][:100]
    assert opened.left_out_more == {"not drawn": 5_000 - 3 - 100}


class Counted(Pool):
    """Counts how many of its nodes are looked at one after another."""

    looked = 0

    def __iter__(self):
        for node in super().__iter__():
            Counted.looked += 1
            yield node


def test_opening_a_round_does_not_look_at_every_candidate():
    story = Story(cohort=CohortRules(min_nodes=2, size=3)).begin()
    Counted.looked = 0
    story.tell(c.Open(candidates=Counted(f"n{number:05}" for number in range(50_000))))
    assert story.state.round is not None
    assert story.state.round.opened.candidates == 50_000
    assert 0 < Counted.looked <= jobs.LEFT_OUT_NAMED + 3


def test_reasons_are_counted_up_to_a_number_of_them():
    story = Story().begin()
    story.tell(c.Open(candidates=["a"], left_out={f"n{number:03}": f"holds {number}" for number in range(500)}))
    assert story.state.round is not None
    more = story.state.round.opened.left_out_more
    assert len(more) == jobs.LEFT_OUT_REASONS + 1
    assert sum(more.values()) == 400
    assert more["other reasons"] == 400 - jobs.LEFT_OUT_REASONS


def test_early_stopping_by_target():
    evaluation = Evaluation(nodes=False, data=Choice("digits"))
    story = Story(rounds=9, evaluation=evaluation, early_stopping=EarlyStopping(target=0.8))
    run_to(story, [0.1, 0.5, 0.85, 0.4])
    assert story.state.rounds_done == 2
    (completed,) = story.tell(c.Tick())
    assert (completed.model, completed.best_round) == ("m2", 2)
    assert "accuracy reached 0.85 in round 2" in completed.reason


def test_early_stopping_by_patience_keeps_the_best_model():
    evaluation = Evaluation(nodes=False, data=Choice("digits"))
    story = Story(rounds=9, evaluation=evaluation, early_stopping=EarlyStopping(patience=2))
    run_to(story, [0.1, 0.6, 0.55, 0.6, 0.9])
    (completed,) = story.tell(c.Tick())
    assert (completed.model, completed.best_round, story.state.rounds_done) == ("m1", 1, 3)


def test_a_smaller_loss_is_better_when_told_so():
    rule = EarlyStopping(metric="loss", mode="min", patience=1)
    story = Story(rounds=5, evaluation=Evaluation(nodes=False, data=Choice("digits")), early_stopping=rule).begin()
    for number, loss in enumerate((2.0, 1.0, 1.5)):
        story.tell(c.RecordEvaluation(round=number, metrics={"loss": loss}))
        if jobs.next_task(story.state) == "train":
            story.open("a")
            story.submit("a")
            story.close(f"m{number + 1}")
    assert story.state.best == (1, 1.0)
    assert story.state.stop_early is not None


def test_events_out_of_order_are_our_own_mistake():
    story = Story()
    with pytest.raises(jobs.OutOfOrder, match="initialising, and RoundClosed came"):
        jobs.evolve(
            story.state,
            e.RoundClosed(at=1.0, round=1, attempt=0, reason="", model="m", state="m", counted={}),
        )


def test_a_restart_gives_the_open_round_its_full_time_again():
    story = Story(cohort=CohortRules(deadline=100.0)).begin().open("a")
    story.tell(c.Extend(reason="restart"), seconds=1000.0)
    assert story.state.round is not None
    assert story.state.round.deadline == story.now + 100.0
