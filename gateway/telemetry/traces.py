"""Traces of requests, sent to an OpenTelemetry collector.

A span for each request, in it one for each attempt at a model, in that one for each stage that the
caller waits in. The names of attributes are OpenTelemetry's for generative AI where it has one; no
text of a prompt or an answer is among them, nor a message of an error, which may cite one.

Needs the extra `traces`: only who traces imports this module.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

import requests
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from gateway.core.errors import GatewayError, Internal
from gateway.core.events import (
    Event,
    ReasoningDelta,
    Routed,
    Started,
    Switched,
    TextDelta,
    ToolCallDelta,
    Waiting,
)
from gateway.core.names import ModelRef
from gateway.core.sessions import SessionClosed, SessionOpened
from gateway.telemetry.propagation import incoming, outgoing

EXPORT_S = 3.0
"""How long a collector may take to accept a batch, and a stopping gateway waits for it."""
MAX_NAME = 128
"""Characters of a model's name in that of a span: it may be whatever a caller wrote."""

_HEADERS = TraceContextTextMapPropagator()


class OtlpTracer:
    """Begins traces; a thread of its own sends them in batches. Fulfils core.ports.Tracer."""

    def __init__(self, endpoint: str, *, headers: dict[str, str], sample: float, node: str) -> None:
        """`endpoint` is the collector's base URL; `sample` the share that is traced of the requests
        whose callers have not decided it."""
        session = requests.Session()
        session.trust_env = False  # proxies and passwords of the environment are not for this
        exporter = OTLPSpanExporter(
            f"{endpoint}/v1/traces", headers=headers, timeout=EXPORT_S, session=session
        )
        resource = Resource(
            {
                "service.name": "model-gateway",
                "service.version": version("model-gateway"),
                "service.instance.id": node,
            }
        )
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(sample)),
            resource=resource,
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("gateway")

    def stream(self, opened: SessionOpened) -> "OtlpStreamTrace":
        return OtlpStreamTrace(self, opened)

    @contextmanager
    def embedding(self, opened: SessionOpened) -> Iterator[None]:
        span = self.begin_request("embeddings", opened)
        before = outgoing.set(head_lines(span))
        try:
            yield
        except GatewayError as error:
            fail(span, error.code)
            raise
        except Exception:
            fail(span, Internal.code)
            raise
        finally:
            outgoing.reset(before)
            span.end()

    def begin_request(self, operation: str, opened: SessionOpened) -> Span:
        """Return the span of a request that this task works for."""
        carrier, model = incoming.get(), opened.requested_model[:MAX_NAME]
        return self._tracer.start_span(
            f"{operation} {model}",
            context=_HEADERS.extract(carrier, Context()) if carrier else Context(),
            kind=SpanKind.SERVER,
            attributes={
                "gen_ai.operation.name": operation,
                "gen_ai.request.model": model,
                "gateway.request.id": opened.request_id,
                "gateway.decision.id": opened.id,
                "gateway.face": opened.face,
            },
        )

    def begin_child(self, parent: Span, name: str, kind: SpanKind = SpanKind.INTERNAL) -> Span:
        return self._tracer.start_span(name, context=set_span_in_context(parent), kind=kind)

    def close(self) -> None:
        """Send what is left. Blocking, for about EXPORT_S at most."""
        self._provider.shutdown()


class OtlpStreamTrace:
    """The spans of one stream. Fulfils core.ports.StreamTrace."""

    def __init__(self, tracer: OtlpTracer, opened: SessionOpened) -> None:
        self._tracer = tracer
        self._request = tracer.begin_request("chat", opened)
        self._attempt: Span | None = None
        self._stage: Span | None = None
        self._stage_name = ""
        self._has_spoken = False

    def end(self, closed: SessionClosed) -> None:
        self._end_attempt(closed.error_code)
        span, usage = self._request, closed.usage
        if closed.provider is not None:
            span.set_attribute("gen_ai.provider.name", closed.provider)
        if closed.model is not None:
            span.set_attribute("gen_ai.response.model", closed.model)
        span.set_attribute("gen_ai.response.finish_reasons", [closed.end.value])
        span.set_attribute("gen_ai.usage.input_tokens", usage.prompt_tokens)
        span.set_attribute("gen_ai.usage.output_tokens", usage.completion_tokens)
        if closed.timings.ttft_ms is not None:
            first_s = closed.timings.ttft_ms / 1000
            span.set_attribute("gen_ai.response.time_to_first_chunk", first_s)
        if closed.error_code is not None:
            fail(span, closed.error_code)
        span.end()

    def observe(self, event: Event) -> None:
        match event:
            case TextDelta() | ReasoningDelta() | ToolCallDelta():
                if not self._has_spoken and self._attempt is not None:
                    self._has_spoken = True
                    self._attempt.add_event("first token")
            case Waiting():
                self._enter(event.stage)
            case Started():
                self._end_stage()
                if self._attempt is not None:
                    waits = {"gateway.queue_ms": event.queue_ms, "gateway.load_ms": event.load_ms}
                    self._attempt.add_event("started", waits)
            case Routed():
                self._begin_attempt(event.ref, event.after)
            case Switched():
                self._end_stage()
                self._request.add_event("switched", {"gateway.reason": event.reason})
            case _:
                pass

    def _begin_attempt(self, ref: ModelRef, failed: str | None) -> None:
        self._end_attempt(failed)
        name = f"chat {ref.qualified_model[:MAX_NAME]}"
        span = self._tracer.begin_child(self._request, name, SpanKind.CLIENT)
        span.set_attribute("gen_ai.operation.name", "chat")
        span.set_attribute("gen_ai.provider.name", ref.provider)
        span.set_attribute("gen_ai.request.model", ref.qualified_model[:MAX_NAME])
        self._attempt = span
        outgoing.set(head_lines(span))

    def _end_attempt(self, failed: str | None) -> None:
        self._end_stage()
        if self._attempt is not None:
            if failed is not None:
                fail(self._attempt, failed)
            self._attempt.end()
            self._attempt = None

    def _enter(self, stage: str) -> None:
        if stage != self._stage_name:
            self._end_stage()
            self._stage_name = stage
            self._stage = self._tracer.begin_child(self._attempt or self._request, stage)

    def _end_stage(self) -> None:
        if self._stage is not None:
            self._stage.end()
        self._stage, self._stage_name = None, ""


def fail(span: Span, code: str) -> None:
    """Mark a span as failed, by the code of the error alone."""
    span.set_attribute("error.type", code)
    span.set_status(StatusCode.ERROR)


def head_lines(span: Span) -> bytes:
    """Return the headers that tell the next server of `span`."""
    carrier: dict[str, str] = {}
    _HEADERS.inject(carrier, set_span_in_context(span, Context()))
    return "".join(f"{name}: {value}\r\n" for name, value in carrier.items()).encode()
