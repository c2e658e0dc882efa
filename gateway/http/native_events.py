"""The native stream: numbered, named events, and `finished` or `failed` as the last one."""

from collections.abc import Sequence
from typing import Any

import msgspec

from gateway.core.events import (
    Event,
    Finished,
    FinishReason,
    ReasoningDelta,
    Routed,
    Started,
    Switched,
    TextDelta,
    Timings,
    TokenLogprob,
    ToolCallDelta,
    Usage,
    Waiting,
)
from gateway.core.messages import ToolCall
from gateway.http.encoding import encode_json
from gateway.http.errors import native_error
from gateway.http.logprobs import describe_logprobs
from gateway.problems import Problem
from gateway.services.live import LiveStream

RETRY_MS = 3000


class _FinishedBody(msgspec.Struct, omit_defaults=True, gc=False):
    reason: FinishReason
    usage: Usage
    timings: dict[str, float | None]
    truncated: bool = False


class NativeEvents:
    """Encodes one stream, from the event after number `after`; the same event has the same bytes
    whenever it is encoded."""

    preamble = b"retry: %d\n\n" % RETRY_MS
    begins_with_waiting = True

    def __init__(self, live: LiveStream, after: int = 0) -> None:
        self._live = live
        self._id = after

    def encode(self, events: Sequence[Event]) -> bytes:
        return b"".join(map(self._encode, events))

    def fail(self, problem: Problem, *, is_end: bool) -> bytes:
        # Not `error`: that is EventSource's own event for a lost connection. One that ends the
        # reading alone has no number: after it, another reader goes on with the stream.
        data = {**native_error(problem), "request_id": self._live.opened.request_id}
        if is_end:
            return self._frame(b"failed", encode_json(data))
        return b"event: failed\ndata: %b\n\n" % encode_json(data)

    def _encode(self, event: Event) -> bytes:
        if type(event) is TextDelta and not event.logprobs:  # as nearly always: each token is one
            self._id += 1
            text = encode_json(event.text)
            return b'id: %d\nevent: delta\ndata: {"text":%b}\n\n' % (self._id, text)
        match event:
            case TextDelta():
                return self._delta({"text": event.text}, event.logprobs)
            case ReasoningDelta():
                return self._delta({"reasoning": event.text}, event.logprobs)
            case ToolCallDelta():
                call = {"index": event.index, **tool_call(event.call)}
                return self._delta({"tool_call": call}, event.logprobs)
            case Waiting():
                return self._frame(b"waiting", encode_json(describe_waiting(event)))
            case Started():
                return self._frame(b"started", self._started(event))
            case Switched():
                return self._frame(b"switched", encode_json(describe_switch(event)))
            case Finished():
                return self._finish(event)
            case Routed():
                raise AssertionError("what is not shown has no number")

    def _delta(self, data: dict[str, Any], logprobs: Sequence[TokenLogprob]) -> bytes:
        if logprobs:
            data["logprobs"] = describe_logprobs(logprobs)
        return self._frame(b"delta", encode_json(data))

    def _started(self, event: Started) -> bytes:
        stream_id, model = encode_json(self._live.id), encode_json(str(event.ref))
        return b'{"stream_id":%b,"model":%b,"decision_id":%b}' % (stream_id, model, stream_id)

    def _finish(self, event: Finished) -> bytes:
        timings = round_timings(self._live.timings)
        end = _FinishedBody(event.reason, event.usage, timings, event.truncated)
        return self._frame(b"finished", encode_json(end))

    def _frame(self, name: bytes, data: bytes) -> bytes:
        self._id += 1
        return b"id: %d\nevent: %b\ndata: %b\n\n" % (self._id, name, data)


def tool_call(call: ToolCall) -> dict[str, str]:
    return {"id": call.id, "name": call.name, "arguments": call.arguments}


def describe_switch(event: Switched) -> dict[str, str]:
    return {"from": str(event.source), "to": str(event.target), "reason": event.reason}


def describe_switches(switches: Sequence[Switched]) -> list[dict[str, str]]:
    return [describe_switch(event) for event in switches]


def round_timings(timings: Timings) -> dict[str, float | None]:
    """Return milliseconds with three decimals: more would only claim to be exact."""
    ttft_ms = timings.ttft_ms
    return {
        "queue_ms": round(timings.queue_ms, 3),
        "load_ms": round(timings.load_ms, 3),
        "ttft_ms": None if ttft_ms is None else round(ttft_ms, 3),
        "total_ms": round(timings.total_ms, 3),
    }


def describe_waiting(event: Waiting) -> dict[str, Any]:
    known = {"position": event.position, "fraction": event.fraction, "eta_s": event.eta_s}
    return {"stage": event.stage, **{k: v for k, v in known.items() if v is not None}}
