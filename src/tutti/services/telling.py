"""What a job tells its nodes: start, halt, and news of the model. A message that is lost costs vain work, no more."""

from collections.abc import Collection, Iterable

from msgspec.structs import replace

from tutti.core.codec import AUTO, NONE
from tutti.core.registry import Choice
from tutti.core.sampling import node_seed
from tutti.domain import events as e
from tutti.domain import jobs
from tutti.domain.events import Digest, NodeId
from tutti.domain.jobs import Job
from tutti.domain.signing import Domain
from tutti.domain.spec import Metrics
from tutti.ports.blobs import Buffer
from tutti.services.presence import Owed
from tutti.services.site import Site
from tutti.wire.messages import GlobalWeights, Halt, Start, Step


def owed(job: Job, task: e.RoundOpened) -> Owed:
    return job.id, task.round, task.attempt


def assign(site: Site, job: Job, nodes: Iterable[NodeId], blob: Buffer) -> None:
    """Tell those nodes of the open round to work that are connected and have not been told; `blob`: its model."""
    if (round := job.round) is None:
        return
    for node in nodes:
        task = round.task_of(node)
        seen = site.presence.get(node)
        if seen is None or not seen.connected or site.presence.was_told(node, owed(job, task)):
            continue
        site.presence.tell(node, owed(job, task), site.journal.clock())
        taken = seen.registration.codecs if seen.registration else ()
        start = _start(job, node, task, _codec(job.spec.codec, taken), site.domain)
        if task is round.opened and job.spec.model_codec.name in taken:
            start = replace(start, steps=tuple(Step(base=each.base, digest=each.step) for each in job.steps))
        site.fabric.send(node, start, blob if task is round.opened else b"")


def _codec(wanted: Choice, taken: Collection[str]) -> Choice:
    """The job's codec, if the node has it; one that has none, such as a browser, sends every value as it is."""
    return wanted if wanted.name in taken or (wanted == AUTO and taken) else NONE


def _start(job: Job, node: NodeId, opened: e.RoundOpened, codec: Choice, domain: Domain) -> Start:
    return Start(
        job=job.id,
        name=job.spec.name,
        round=opened.round,
        attempt=opened.attempt,
        rounds=job.spec.rounds,
        task=opened.task,
        model=job.spec.model,
        data=job.data,
        weights=opened.fetched,
        seed=node_seed(job.spec.seed, opened.round, node),
        cohort=len(opened.cohort),
        training=job.spec.training,
        share=opened.less.get(node, 1.0),
        less_of=job.spec.cohort.less_of,
        strategy=job.spec.strategy,
        settings=opened.settings,
        counted=job.contributions[node].round if node in job.contributions else 0,
        codec=codec,
        evaluate=jobs.nodes_evaluate(job),
        domain=domain,
    )


def halt(site: Site, job: Job, node: NodeId, task: e.RoundOpened, reason: str) -> None:
    """Call a node off, if it was told to work."""
    if site.presence.was_told(node, owed(job, task)):
        site.fabric.send(node, Halt(job=job.id, round=task.round, attempt=task.attempt, reason=reason))


def halt_last(site: Site, job: Job, reason: str) -> None:
    """Call off the nodes that still work for the round that has just ended, but for those that go on regardless."""
    round = job.past[-1].round
    for node in round.waiting_for:
        if node not in job.working:
            halt(site, job, node, round.task_of(node), reason)


def halt_working(site: Site, job: Job, reason: str) -> None:
    """Call off the nodes that go on with their work between overlapping rounds."""
    for node, task in job.working.items():
        halt(site, job, node, task, reason)


def announce(site: Site, job: Job, model: Digest, metrics: Metrics | None = None, *, final: bool = False) -> None:
    """Tell the last cohort of a new model, but for those who go on with an older one."""
    opened = job.past[-1].round.opened
    news = GlobalWeights(job=job.id, round=opened.round, weights=model, metrics=metrics or {}, final=final)
    for node in opened.cohort:
        if final or node not in job.working:
            site.fabric.send(node, news)
