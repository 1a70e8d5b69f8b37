"""The job machine under random commands: what holds in every state, whatever is told in whatever order."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tutti.core.errors import Conflict
from tutti.core.registry import Choice
from tutti.domain import commands as c
from tutti.domain import events as e
from tutti.domain import jobs
from tutti.domain.rounds import Part, due
from tutti.domain.spec import CohortRules, DataSchema, JobSpec

NODES = ("a", "b", "c", "d", "e")
nodes = st.sampled_from(NODES)


class JobMachine(RuleBasedStateMachine):
    @initialize(
        min_nodes=st.integers(1, 3),
        over_select=st.sampled_from([0.0, 1.0]),
        rounds=st.integers(1, 3),
        retries=st.integers(0, 2),
    )
    def submit(self, min_nodes, over_select, rounds, retries):
        rules = CohortRules(min_nodes=min_nodes, fraction=0.6, over_select=over_select, retries=retries, deadline=50.0)
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
    )
    def update(self, node, wrong_round, weight, fault, digest):
        round = self.state.round
        number, attempt = (round.number, round.opened.attempt) if round else (1, 0)
        self.tell(
            c.SubmitUpdate(
                round=number + wrong_round,
                attempt=attempt,
                node=node,
                digest=digest,
                weight=weight,
                metrics={},
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
