"""A collector of traces: takes OTLP over HTTP as one does, and keeps the spans."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Condition, Thread

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

Value = str | int | float | bool | list[str]


class Received:
    """A span as it came; ids are hexadecimal."""

    def __init__(self, span: Span) -> None:
        self.name = span.name
        self.kind = Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_")
        self.trace_id = span.trace_id.hex()
        self.span_id = span.span_id.hex()
        self.parent_id = span.parent_span_id.hex()
        self.attributes = {each.key: _value(each.value) for each in span.attributes}
        self.events = {
            event.name: {each.key: _value(each.value) for each in event.attributes}
            for event in span.events
        }
        self.failed = span.status.code == 2
        self.said = span.status.message
        self.took_ns = span.end_time_unix_nano - span.start_time_unix_nano


def _value(value: AnyValue) -> Value:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [str(_value(each)) for each in value.array_value.values]
    found: Value = getattr(value, kind or "string_value")
    return found


class OtlpReceiver:
    """Serves in a thread of its own. `bodies` is what came, `headers` what came with it."""

    def __init__(self) -> None:
        self.spans: list[Received] = []
        self.resource: dict[str, Value] = {}
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self._changed = Condition()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver._take(self.path, dict(self.headers.items()), body)
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def named(self, name: str) -> list[Received]:
        return [span for span in self.spans if span.name == name]

    def wait(self, count: int, name: str) -> list[Received]:
        """Return the spans of that name once there are so many."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.named(name)) >= count, timeout=30)
            return self.named(name)

    def _take(self, path: str, headers: dict[str, str], body: bytes) -> None:
        assert path == "/v1/traces"
        request = ExportTraceServiceRequest.FromString(body)
        with self._changed:
            self.headers.append(headers)
            self.bodies.append(body)
            for group in request.resource_spans:
                self.resource = {e.key: _value(e.value) for e in group.resource.attributes}
                self.spans += [
                    Received(span) for scope in group.scope_spans for span in scope.spans
                ]
            self._changed.notify_all()

    def serve(self) -> None:
        self._server.serve_forever(poll_interval=0.05)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def receiving() -> Iterator[OtlpReceiver]:
    receiver = OtlpReceiver()
    thread = Thread(target=receiver.serve)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.close()
        thread.join()
