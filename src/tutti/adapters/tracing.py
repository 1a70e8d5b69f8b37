"""OpenTelemetry traces of rounds, across coordinator and nodes; only where the OTEL_ environment asks for them.

A round is a trace. The coordinator's span `round` lasts from its opening to its end; what each node does for it is a
span `task` below, with `fetch` and `store` below that. The context travels in the field `trace` of `training:start`,
written as in https://www.w3.org/TR/trace-context/. Coordinator and node know nothing of it: their fabric and link are
wrapped here, and the journal tells of rounds.
"""

import logging
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from msgspec.structs import replace

from tutti.core.errors import TuttiError
from tutti.domain import events as e
from tutti.domain.events import Digest, NodeId
from tutti.ports import Fabric, FabricEvent, Link, Recorded
from tutti.ports.blobs import Buffer
from tutti.wire.messages import (
    CoordinatorMessage,
    Failure,
    GlobalWeights,
    Halt,
    NodeMessage,
    Registration,
    Start,
    Submission,
)

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

log = logging.getLogger(__name__)

ASKED_BY = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def wanted(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment names a collector, and neither switches the SDK off nor takes another exporter."""
    off = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    exporter = environment.get("OTEL_TRACES_EXPORTER", "otlp")
    return not off and exporter == "otlp" and any(map(environment.get, ASKED_BY))


@contextmanager
def tracing(service: str) -> "Iterator[Tracer | None]":
    """A tracer that sends to the collector of the environment, all of it by the end; None if there is no collector."""
    if not wanted():
        yield None
        return
    try:
        provider = _provider(service)
    except ImportError:
        log.warning("the environment asks for traces: pip install '.[otel]' in Tutti's sources to have them")
        yield None
        return
    try:
        yield provider.get_tracer("tutti")
    finally:
        provider.shutdown()


def _provider(service: str) -> "TracerProvider":
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": service}
    provider = TracerProvider(resource=Resource.create(named))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


# -- the coordinator's side ----------------------------------------------------------------------------


class TracedFabric:
    """A Fabric that tells nodes of which trace their task is part. `told` is a projection of the journal."""

    def __init__(self, inner: Fabric, tracer: "Tracer") -> None:
        self._inner, self._tracer = inner, tracer
        self._rounds: dict[str, tuple[int, int, Span]] = {}

    def events(self) -> AsyncIterator[FabricEvent]:
        return self._inner.events()

    def disconnect(self, node: NodeId, reason: str) -> None:
        self._inner.disconnect(node, reason)

    def send(self, node: NodeId, message: CoordinatorMessage, blob: Buffer = b"") -> bool:
        if isinstance(message, Start):
            message = replace(message, trace=_written(self._round(message.job, message.round, message.attempt)))
        return self._inner.send(node, message, blob)

    def _round(self, job: str, number: int, attempt: int) -> "Span":
        """The span of a round; a round that was open when this process started gets one at its first task."""
        known = self._rounds.get(job)
        if known is not None and known[:2] == (number, attempt):
            return known[2]
        return self._begin(job, number, attempt)

    def _begin(self, job: str, number: int, attempt: int) -> "Span":
        self._end(job)
        about: dict[str, str | int] = {"tutti.job": job, "tutti.round": number, "tutti.attempt": attempt}
        span = self._tracer.start_span("round", context=_nothing(), attributes=about)
        self._rounds[job] = number, attempt, span
        return span

    def _end(self, job: str, failure: str = "") -> None:
        if (known := self._rounds.pop(job, None)) is not None:
            _finish(known[2], failure)

    def told(self, recorded: Recorded) -> None:
        job, event = recorded.stream.removeprefix("job:"), recorded.event
        match event:
            case e.RoundOpened(round=number, attempt=attempt):
                self._begin(job, number, attempt)
            case e.UpdateAccepted(node=node):
                self._note(job, "update accepted", node)
            case e.UpdateRefused(node=node, reason=reason) | e.NodeDropped(node=node, reason=reason):
                self._note(job, "excluded", node, reason)
            case e.RoundClosed():
                self._end(job)
            case e.RoundFailed(reason=reason) | e.JobFailed(reason=reason) | e.JobStopped(reason=reason):
                self._end(job, reason)
            case _:
                pass

    def _note(self, job: str, what: str, node: NodeId, reason: str = "") -> None:
        if (known := self._rounds.get(job)) is not None:
            about = {"tutti.node": node}
            known[2].add_event(what, about | {"reason": reason} if reason else about)

    def close(self) -> None:
        for job in list(self._rounds):
            self._end(job, "the coordinator stops")


# -- the node's side -----------------------------------------------------------------------------------


class TracedLink:
    """A Link that makes a span of each task, from being told to handing in or being called off."""

    def __init__(self, inner: Link, tracer: "Tracer", node: NodeId) -> None:
        self._inner, self._tracer, self._node = inner, tracer, node
        self._task: tuple[Start, Span] | None = None

    async def connect(self, registration: Registration) -> AsyncIterator[CoordinatorMessage]:
        return self._heard(await self._inner.connect(registration))

    async def _heard(self, messages: AsyncIterator[CoordinatorMessage]) -> AsyncIterator[CoordinatorMessage]:
        async for message in messages:
            match message:
                case Start():
                    self._begin(message)
                case Halt(reason=reason):
                    self._end(message, reason)
                case GlobalWeights(job=job, round=round) if self._task and self._task[0].job == job:
                    if self._task[0].round <= round:
                        self._end(self._task[0], f"round {round} is closed")
                case _:
                    pass
            yield message

    async def send(self, message: NodeMessage) -> None:
        await self._inner.send(message)
        match message:
            case Submission():
                self._end(message)
            case Failure(reason=reason):
                self._end(message, reason)
            case _:
                pass

    async def fetch(self, digest: Digest) -> Buffer:
        with self._part("fetch", digest) as span:
            blob = await self._inner.fetch(digest)
            span.set_attribute("tutti.bytes", memoryview(blob).nbytes)
            return blob

    async def store(self, blob: Buffer, digest: Digest) -> None:
        with self._part("store", digest) as span:
            span.set_attribute("tutti.bytes", memoryview(blob).nbytes)
            await self._inner.store(blob, digest)

    def _begin(self, start: Start) -> None:
        if self._task is not None and _same(self._task[0], start):
            return
        if self._task is not None:
            self._end(self._task[0], "another task came instead")
        about: dict[str, str | int] = {
            "tutti.job": start.job,
            "tutti.round": start.round,
            "tutti.attempt": start.attempt,
            "tutti.node": self._node,
            "tutti.task": start.task,
        }
        self._task = start, self._tracer.start_span("task", context=_read(start.trace), attributes=about)

    def _end(self, message: "Start | Halt | Submission | Failure", failure: str = "") -> None:
        if self._task is not None and _same(self._task[0], message):
            _finish(self._task[1], failure)
            self._task = None

    @contextmanager
    def _part(self, name: str, digest: Digest) -> "Iterator[Span]":
        from opentelemetry.trace import set_span_in_context

        parent = set_span_in_context(self._task[1]) if self._task else _nothing()
        span = self._tracer.start_span(
            name, context=parent, attributes={"tutti.node": self._node, "tutti.blob": digest}
        )
        failure = "given up"
        try:
            yield span
            failure = ""
        except TuttiError as error:
            failure = str(error)
            raise
        finally:
            _finish(span, failure)


def _same(start: Start, other: "Start | Halt | Submission | Failure") -> bool:
    return (start.job, start.round, start.attempt) == (other.job, other.round, other.attempt)


def _finish(span: "Span", failure: str = "") -> None:
    from opentelemetry.trace import Status, StatusCode

    if failure:
        span.set_status(Status(StatusCode.ERROR, failure))
    span.end()


def _nothing() -> "Context":
    from opentelemetry.context import Context

    return Context()


def _written(span: "Span") -> str:
    from opentelemetry.trace import set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier, set_span_in_context(span))
    return carrier.get("traceparent", "")


def _read(trace: str) -> "Context":
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": trace}, context=_nothing())
