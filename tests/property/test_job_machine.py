"""The job machine under random commands: what holds in every state, whatever is told in whatever order."""

import math

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from msgspec.structs import replace

from tutti.core.errors import Conflict
from tutti.core.registry import Choice
from tutti.domain import commands as c
from tutti.domain import events as e
from tutti.domain import jobs
from tutti.domain.history import KEPT_IN_FULL, attempts_at
from tutti.domain.rounds import Part, due
from tutti.domain.spec import CohortRules, DataSchema, JobSpec

NODES = ("a", "b", "c", "d", "e")
nodes = st.sampled_from(NODES)
numbers = st.sampled_from([0.0, 1.0, -1.0, 3e37, 1e38, -1e38, 1e308, -1e308, math.inf, math.nan])
metrics = st.dictionaries(st.sampled_from(["eval_loss", "eval_examples", "train_loss", "train_examples"]), numbers)
ALL = range(100)


class JobMachine(RuleBasedStateMachine):
    @initialize(
        min_nodes=st.integers(1, 3),
        over_select=st.sampled_from([0.0, 1.0]),
        rounds=st.integers(1, 3),
        retries=st.integers(0, 2),
    )
    def submit(self, min_nodes, over_select, rounds, retries):
        rules = CohortRules(
            min_nodes=min_nodes, fraction=0.6, over_select=over_select, retries=retries, deadline=50.0, floor=5.0
        )
        spec = JobSpec(dataset="toy", model=Choice("linear"), rounds=rounds, cohort=rules)
        self.now = 0.0
        self.log: list[e.JobEvent] = [jobs.submit("j", spec, DataSchema("regression", (1,), 1), now=0.0)]
        self.state = jobs.replay(self.log)
        self.models = 0

    def tell(self, command):
        self.now += 1.0
        try:
            events = jobs.decide(self.state, command, now=self.now)
        except Conflict:
            return
        for event in events:
            self.state = jobs.evolve(self.state, event)  # never raises for what decide gives out
        self.log += events

    @rule()
    def initialise(self):
        self.tell(c.Initialise(model="m0", state="m0", parameters=1))

    @rule(candidates=st.sets(nodes))
    def open(self, candidates):
        self.tell(c.Open(candidates=sorted(candidates)))

    @rule(
        node=st.sampled_from((*NODES, "stranger")),
        wrong_round=st.integers(0, 9).map(lambda n: n == 0),
        weight=st.integers(-1, 9),
        fault=st.sampled_from([None, None, None, "NaN"]),
        digest=st.sampled_from(["x", "y"]),
        metrics=st.just({}) | metrics,
        seconds=st.sampled_from([0.0, 20.0]),
    )
    def update(self, node, wrong_round, weight, fault, digest, metrics, seconds):
        self.now += seconds
        round = self.state.round
        number, attempt = (round.number, round.opened.attempt) if round else (1, 0)
        self.tell(
            c.SubmitUpdate(
                round=number + wrong_round,
                attempt=attempt,
                node=node,
                digest=digest,
                weight=weight,
                metrics=metrics,
                fault=fault,
            )
        )

    @rule(node=nodes)
    def drop(self, node):
        self.tell(c.Drop(node=node, reason="gone"))

    @rule(node=nodes)
    def lose(self, node):
        self.tell(c.LoseUpdate(node=node, reason="corrupt"))

    @rule()
    def close(self):
        instruction = jobs.react(self.state, now=self.now + 1.0)
        if isinstance(instruction, c.Aggregate):
            round = self.state.round
            assert round is not None
            self.models += 1
            counted = {update.node: update.weight for update in instruction.updates}
            model = f"m{self.models}"
            self.tell(
                c.Close(round=round.number, attempt=round.opened.attempt, counted=counted, model=model, state=model)
            )

    @rule(seconds=st.sampled_from([0.0, 60.0]))
    def tick(self, seconds):
        self.now += seconds
        self.tell(c.Tick())

    @rule()
    def restart(self):
        self.tell(c.Extend(reason="restart"))

    @rule(command=st.sampled_from([c.Pause(), c.Resume(), c.SkipEvaluation(reason="nobody")]))
    def steer(self, command):
        self.tell(command)

    @rule(dice=st.integers(0, 40))
    def stop(self, dice):
        if dice == 0:
            self.tell(c.Stop())

    @invariant()
    def the_log_is_the_state(self):
        assert jobs.replay(self.log) == self.state

    @invariant()
    def asking_twice_gives_the_same_answer(self):
        assert jobs.react(self.state, now=self.now) == jobs.react(self.state, now=self.now)

    @invariant()
    def an_open_round_counts_what_its_members_say(self):
        round = self.state.round
        assert (round is not None) == (self.state.status is jobs.Status.TRAINING)
        if round is None:
            return
        assert set(round.members) == set(round.opened.cohort)
        assert round.came == sum(member.part is Part.ACCEPTED for member in round.members.values())
        assert round.open == sum(member.part is Part.ASSIGNED for member in round.members.values())
        assert round.opened.quorum <= round.opened.wanted <= len(round.opened.cohort)

    @invariant()
    def every_update_is_counted_at_most_once_and_only_if_it_was_accepted(self):
        accepted: dict[tuple[int, int, str], int] = {}
        for event in self.log:
            match event:
                case e.RoundOpened(round=number, attempt=attempt):
                    key = (number, attempt)
                case e.UpdateAccepted(node=node, weight=weight):
                    assert (*key, node) not in accepted
                    accepted[*key, node] = weight
                case e.UpdateLost(node=node):
                    del accepted[*key, node]
                case e.RoundClosed(counted=counted):
                    assert counted == {node: w for (n, a, node), w in accepted.items() if (n, a) == key}
                    assert all(weight >= 1 for weight in counted.values())

    @invariant()
    def whatever_nodes_say_the_log_holds_numbers_only(self):
        for event in self.log:
            assert all(math.isfinite(value) for value in getattr(event, "metrics", {}).values())

    @invariant()
    def a_round_has_its_time_and_after_a_missed_deadline_twice_as_much(self):
        rules, missed = self.state.spec.cohort, 0.0
        for summary in attempts_at(self.log, ALL):
            opened = summary.round.opened
            allowed = opened.deadline - opened.at
            assert min(rules.deadline, max(rules.floor, 2 * missed)) - 1e-6 <= allowed <= rules.deadline + 1e-6
            late = not summary.succeeded and summary.round.waiting_for and summary.closed_at >= summary.deadline
            missed = allowed if late else 0.0

    @invariant()
    def the_past_can_be_rebuilt_from_the_log(self):
        rebuilt = attempts_at(self.log, ALL)
        assert [replace(summary, detail=None) for summary in rebuilt] == [
            replace(summary, detail=None) for summary in self.state.past
        ]
        for full, kept in zip(rebuilt[-KEPT_IN_FULL:], self.state.past[-KEPT_IN_FULL:], strict=True):
            assert full == kept

    @invariant()
    def contributions_are_what_was_counted(self):
        made = [summary for summary in attempts_at(self.log, ALL) if summary.made_model]
        counted = sum(weight for summary in made for weight in summary.counted.values())
        assert sum(given.weight for given in self.state.contributions.values()) == counted

    @invariant()
    def the_job_never_hangs(self):
        """Something is owed, or time or a person will change it, or it is over."""
        state = self.state
        if state.final or state.paused is not None:
            return
        waits = jobs.react(state, now=self.now) is not None
        fails = state.round is not None and (verdict := due(state.round, self.now)) is not None and not verdict.succeeds
        done = state.round is None and jobs.next_task(state) is None
        assert waits or fails or done


JobMachine.TestCase.settings = settings(max_examples=300, stateful_step_count=60, deadline=None)
TestJobMachine = JobMachine.TestCase
