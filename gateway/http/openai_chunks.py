"""The OpenAI face's forms of an answer: whole, and as a stream of chunks.

No ids and no named events: after an `id:`, a ping breaks openai-python and LangChain.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from gateway.core.events import (
    Event,
    Finished,
    FinishReason,
    Generation,
    ReasoningDelta,
    Routed,
    Started,
    Switched,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    Usage,
    Waiting,
)
from gateway.core.messages import ToolCall
from gateway.core.names import ModelRef
from gateway.http.encoding import encode_json
from gateway.http.errors import openai_error
from gateway.http.logprobs import describe_logprobs, describe_text_logprobs
from gateway.http.native_events import describe_marks, describe_switch, describe_waiting
from gateway.problems import Problem
from gateway.services.live import LiveStream

DONE = b"data: [DONE]\n\n"
_TEXT = "text"

# Clients know no word for an answer that was cut off but `length`.
_FINISH_REASONS: dict[FinishReason, str] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "cancelled": "length",
    "error": "length",
}


class _Chunks(ABC):
    """The frames that chat and plain completions share."""

    preamble = b""
    begins_with_waiting = False
    kind: str
    prefix: str

    def __init__(self, live: LiveStream, *, includes_usage: bool) -> None:
        self._live = live
        self._includes_usage = includes_usage
        self._created = int(time.time())
        self._model = ""
        self._around: tuple[bytes, bytes] | None = None

    def encode(self, events: Sequence[Event]) -> bytes:
        return b"".join([self._encode(event) for event in events])

    def fail(self, problem: Problem, *, is_end: bool) -> bytes:
        return _frame({"error": openai_error(problem)})

    def _encode(self, event: Event) -> bytes:
        match event:
            case TextDelta() | ReasoningDelta() | ToolCallDelta():
                return self._delta(event)
            case Started():
                self._name_model(event.ref)
                return self._start()
            case Switched():
                self._name_model(event.target)
                return self._switch(event)
            case Finished():
                return self._finish(event)
            case Waiting():
                # A comment: clients skip it, and whoever watches the bytes sees what is going on.
                return b": waiting %b\n\n" % encode_json(describe_waiting(event))
            case Routed():
                return b""

    def _name_model(self, ref: ModelRef) -> None:
        self._model = str(ref)
        self._around = None

    @abstractmethod
    def _start(self) -> bytes: ...

    @abstractmethod
    def _delta(self, event: TextDelta | ReasoningDelta | ToolCallDelta) -> bytes: ...

    @abstractmethod
    def _empty_choice(self, reason: str | None) -> dict[str, Any]: ...

    def _switch(self, event: Switched) -> bytes:
        # A chunk that says nothing, which clients are used to, and a field that they pass over.
        return self._chunk([self._empty_choice(None)], switched=describe_switch(event))

    def _finish(self, event: Finished) -> bytes:
        marks: dict[str, Any] = {"truncated": True} if event.truncated else {}
        frames = self._chunk([self._empty_choice(_FINISH_REASONS[event.reason])], **marks)
        if self._includes_usage:
            frames += self._chunk([], event.usage)
        return frames + DONE

    def _chunk(
        self, choices: list[dict[str, Any]], usage: Usage | None = None, **beyond: Any
    ) -> bytes:
        chunk = {
            "id": f"{self.prefix}-{self._live.id}",
            "object": self.kind,
            "created": self._created,
            "model": self._model or str(self._live.tally.ref or ""),
            "choices": choices,
            **beyond,
        }
        if self._includes_usage:
            chunk["usage"] = None if usage is None else describe_usage(usage)
        return _frame(chunk)


class ChatChunks(_Chunks):
    kind = "chat.completion.chunk"
    prefix = "chatcmpl"

    def _start(self) -> bytes:
        return self._delta_chunk({"role": "assistant", "content": ""})

    def _delta(self, event: TextDelta | ReasoningDelta | ToolCallDelta) -> bytes:
        match event:
            case TextDelta():
                return self._text(event) if event.text or event.logprobs else b""
            case ReasoningDelta():
                return self._delta_chunk({"reasoning_content": event.text}) if event.text else b""
            case ToolCallDelta():
                call = {"index": event.index, **_describe_call(event.call)}
                return self._delta_chunk({"tool_calls": [call]})

    def _empty_choice(self, reason: str | None) -> dict[str, Any]:
        return {"index": 0, "delta": {}, "logprobs": None, "finish_reason": reason}

    def _text(self, event: TextDelta) -> bytes:
        if event.logprobs:
            return self._delta_chunk({"content": event.text}, _chat_logprobs(event.logprobs))
        if self._around is None:
            # All but the text is the same for every token of a stream.
            before, _, after = self._delta_chunk({"content": _TEXT}).rpartition(encode_json(_TEXT))
            self._around = before, after
        return encode_json(event.text).join(self._around)

    def _delta_chunk(self, delta: dict[str, Any], logprobs: dict[str, Any] | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": None}
        return self._chunk([choice])


class CompletionChunks(_Chunks):
    kind = "text_completion"
    prefix = "cmpl"
    _told = 0

    def _start(self) -> bytes:
        return self._chunk([_text_choice("", None)])

    def _delta(self, event: TextDelta | ReasoningDelta | ToolCallDelta) -> bytes:
        if not isinstance(event, TextDelta) or not (event.text or event.logprobs):
            return b""
        choice = _text_choice(event.text, None, event.logprobs, self._told)
        self._told += len(event.text)
        return self._chunk([choice])

    def _empty_choice(self, reason: str | None) -> dict[str, Any]:
        return _text_choice("", reason)


def describe_chat(live: LiveStream, answer: Generation) -> dict[str, Any]:
    """Return a whole chat answer."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    if answer.tool_calls:
        message["tool_calls"] = [_describe_call(call) for call in answer.tool_calls]
        message["content"] = answer.text or None
    choice = {
        "index": 0,
        "message": message,
        "logprobs": _chat_logprobs(answer.logprobs),
        "finish_reason": _FINISH_REASONS[answer.finish_reason],
    }
    return _whole(f"chatcmpl-{live.id}", "chat.completion", answer, choice)


def describe_completion(live: LiveStream, answer: Generation) -> dict[str, Any]:
    """Return a whole plain completion."""
    reason = _FINISH_REASONS[answer.finish_reason]
    choice = _text_choice(answer.text, reason, answer.logprobs)
    return _whole(f"cmpl-{live.id}", "text_completion", answer, choice)


def describe_usage(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _whole(answer_id: str, kind: str, answer: Generation, choice: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": answer_id,
        "object": kind,
        "created": int(time.time()),
        "model": str(answer.ref),
        "choices": [choice],
        "usage": describe_usage(answer.usage),
        **describe_marks(answer),
    }


def _text_choice(
    text: str, reason: str | None, logprobs: Sequence[TokenLogprob] = (), offset: int = 0
) -> dict[str, Any]:
    described = describe_text_logprobs(logprobs, offset) if logprobs else None
    return {"index": 0, "text": text, "logprobs": described, "finish_reason": reason}


def _chat_logprobs(logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
    return {"content": describe_logprobs(logprobs), "refusal": None} if logprobs else None


def _describe_call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _frame(data: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % encode_json(data)
