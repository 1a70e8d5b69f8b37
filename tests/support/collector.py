"""An OTLP collector of a test's own: what is sent to it over HTTP, span by span."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass
class Received:
    span: Span
    service: str

    @property
    def about(self) -> dict[str, str | int]:
        return {
            each.key: each.value.int_value if each.value.HasField("int_value") else each.value.string_value
            for each in self.span.attributes
        }


@dataclass
class Collector:
    url: str
    received: list[Received] = field(default_factory=list)

    def named(self, name: str) -> list[Received]:
        return [each for each in self.received if each.span.name == name]


@contextmanager
def collecting() -> Iterator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
            for group in request.resource_spans:
                service = next(a.value.string_value for a in group.resource.attributes if a.key == "service.name")
                spans = [span for scope in group.scope_spans for span in scope.spans]
                collector.received.extend(Received(span, service) for span in spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector = Collector(f"http://127.0.0.1:{server.server_port}")
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()
