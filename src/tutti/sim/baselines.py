"""What a federated model is compared with: each node alone, and all rows in one place, which nobody has without moving
data. Both are simulated jobs of one node, from the same initial model, and look at as many rows as the federation did.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from msgspec.structs import replace

from tutti.core.registry import Choice
from tutti.core.sampling import cohort_size, sample
from tutti.domain.events import NodeId
from tutti.domain.spec import CohortRules, Evaluation, JobSpec, Metrics
from tutti.sim.federation import Federation
from tutti.sim.history import RoundRecord
from tutti.sim.simulation import simulate

MOST_ALONE = 10
"""Of more nodes, so many are drawn to train alone."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """What a model measures that was trained on so many rows; nothing if its training diverged."""

    examples: int
    metrics: Metrics


@dataclass(frozen=True, slots=True)
class Baselines:
    """`alone` by node, in order; `nodes` is how many there are in all."""

    alone: Mapping[NodeId, Baseline]
    pooled: Baseline
    nodes: int

    def mean_alone(self, metric: str) -> float | None:
        """Of those that did not diverge."""
        values = [each.metrics[metric] for each in self.alone.values() if metric in each.metrics]
        return sum(values) / len(values) if values else None


def baselines(
    spec: JobSpec,
    federation: Federation,
    rounds: int,
    *,
    engine: str = "auto",
    told: Callable[[int, int], None] = lambda done, of: None,
) -> Baselines:
    """Train without a federation, and measure on the job's own evaluation data, or else on what all nodes hold out.

    Args:
        rounds: How many the federated job did. A node trains in as many as it would be drawn for on average, and the
            pooled rows are gone through as often.
        told: Is called with how many of how many models are trained.
    """
    job, there = alone(spec, len(federation.nodes), rounds), len(federation.nodes)
    if job.normalize:
        federation, job = federation.normalized(), replace(job, normalize=False)
    names = sample(federation.nodes, MOST_ALONE, seed=spec.seed, round=0, attempt=1)
    parts = [*(federation.alone(name) for name in federation.nodes if name in names), federation.pooled()]
    found = []
    for number, part in enumerate(parts):
        told(number, len(parts))
        most = job.training.max_steps
        steps = most and most * (there if part is parts[-1] else 1)
        history = simulate(replace(job, training=replace(job.training, max_steps=steps)), part, engine=engine)
        done = history.header.status == "completed"
        found.append(Baseline(sum(map(len, part.train.values())), final(history.rounds[-1]) if done else {}))
    told(len(parts), len(parts))
    return Baselines({part.nodes[0]: each for part, each in zip(parts[:-1], found, strict=False)}, found[-1], there)


def final(record: RoundRecord) -> Metrics:
    """The model's metrics on common rows, or else on the rows that nodes hold out."""
    return record.evaluated.get("coordinator") or record.evaluated.get("nodes") or {}


def alone(spec: JobSpec, nodes: int, rounds: int) -> JobSpec:
    """The same training by one node, without anything that is there for several: jobs alike in this share baselines."""
    drawn = cohort_size(nodes, spec.cohort.size, spec.cohort.fraction)
    rounds = max(1, round(rounds * drawn / nodes))
    return replace(
        spec,
        name="alone",
        strategy=Choice("fedavg"),
        codec=Choice("none"),
        reducer=Choice("mean"),
        trusted=None,
        rounds=rounds,
        cohort=CohortRules(),
        evaluation=Evaluation(every=rounds, nodes=spec.evaluation.data is None, data=spec.evaluation.data),
        early_stopping=None,
        rewards=None,
    )
