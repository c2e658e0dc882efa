"""The OpenAI face's forms of an answer: whole, and as a stream of chunks.

No ids and no named events: after an `id:`, a ping breaks openai-python and LangChain.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import msgspec

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
from gateway.http.native_events import describe_switch, describe_switches, describe_waiting
from gateway.problems import Problem
from gateway.services.live import LiveStream

DONE = b"data: [DONE]\n\n"
_NULL = b"null"
# The choices of a chunk: a delta or a text, its log probabilities, the reason to finish.
_DELTA = b'[{"index":0,"delta":%b,"logprobs":%b,"finish_reason":%b}]'
_TEXT = b'[{"index":0,"text":%b,"logprobs":%b,"finish_reason":%b}]'

# Clients know no word for an answer that was cut off but `length`.
_FINISH_REASONS: dict[FinishReason, str] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "cancelled": "length",
    "error": "length",
}


class _UsageBody(msgspec.Struct, gc=False):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class _MessageBody(msgspec.Struct, gc=False):
    role: str
    content: str | None
    refusal: None
    reasoning_content: str | msgspec.UnsetType
    tool_calls: list[dict[str, Any]] | msgspec.UnsetType


class _ChatChoice(msgspec.Struct, gc=False):
    index: int
    message: _MessageBody
    logprobs: dict[str, Any] | None
    finish_reason: str


class _TextChoice(msgspec.Struct, gc=False):
    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: str


class _WholeBody(msgspec.Struct, gc=False):
    id: str
    object: str
    created: int
    model: str
    choices: list[_ChatChoice | _TextChoice]
    usage: _UsageBody
    switched: list[dict[str, str]] | msgspec.UnsetType
    truncated: bool | msgspec.UnsetType


class _Chunks(ABC):
    """The frames that chat and plain completions share."""

    preamble = b""
    begins_with_waiting = False
    kind: bytes
    prefix: bytes
    empty: bytes
    """The choices of a chunk that says nothing, with a place for the reason to finish."""

    def __init__(self, live: LiveStream, *, includes_usage: bool) -> None:
        self._live = live
        self._includes_usage = includes_usage
        self._created = int(time.time())
        self._before: bytes | None = None
        self._around: tuple[bytes, bytes] | None = None

    def encode(self, events: Sequence[Event]) -> bytes:
        if len(events) == 1 and type(event := events[0]) is TextDelta:
            return self._text(event)
        return b"".join(map(self._encode, events))

    def fail(self, problem: Problem, *, is_end: bool) -> bytes:
        return _frame({"error": openai_error(problem)})

    def _encode(self, event: Event) -> bytes:
        if isinstance(event, TextDelta):  # as nearly always, and each token is one
            return self._text(event)
        match event:
            case ReasoningDelta() | ToolCallDelta():
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
        self._before = self._begin(str(ref))
        self._around = None

    @abstractmethod
    def _start(self) -> bytes: ...

    @abstractmethod
    def _text(self, event: TextDelta) -> bytes: ...

    @abstractmethod
    def _delta(self, event: ReasoningDelta | ToolCallDelta) -> bytes: ...

    def _switch(self, event: Switched) -> bytes:
        # A chunk that says nothing, which clients are used to, and a field that they pass over.
        beyond = b',"switched":%b' % encode_json(describe_switch(event))
        return self._chunk(self.empty % _NULL, beyond=beyond)

    def _finish(self, event: Finished) -> bytes:
        choices = self.empty % encode_json(_FINISH_REASONS[event.reason])
        frames = self._chunk(choices, beyond=b',"truncated":true' if event.truncated else b"")
        if self._includes_usage:
            frames += self._chunk(b"[]", usage=encode_json(describe_usage(event.usage)))
        return frames + DONE

    def _chunk(self, choices: bytes, *, beyond: bytes = b"", usage: bytes = _NULL) -> bytes:
        before = self._before or self._begin(str(self._live.tally.ref or ""))
        after = b',"usage":%b' % usage if self._includes_usage else b""
        return b"%b%b%b%b}\n\n" % (before, choices, beyond, after)

    def _begin(self, model: str) -> bytes:
        """Return what is the same in all chunks of a model, up to their choices."""
        return b'data: {"id":"%b-%b","object":"%b","created":%d,"model":%b,"choices":' % (
            self.prefix,
            self._live.id.encode(),
            self.kind,
            self._created,
            encode_json(model),
        )


class ChatChunks(_Chunks):
    kind = b"chat.completion.chunk"
    prefix = b"chatcmpl"
    empty = b'[{"index":0,"delta":{},"logprobs":null,"finish_reason":%b}]'

    def _start(self) -> bytes:
        return self._delta_chunk(b'{"role":"assistant","content":""}')

    def _text(self, event: TextDelta) -> bytes:
        text = event.text
        if event.logprobs:
            logprobs = encode_json(_chat_logprobs(event.logprobs))
            return self._delta_chunk(b'{"content":%b}' % encode_json(text), logprobs)
        if not text:
            return b""
        if self._around is None:
            # All but the text is the same for every token of a stream.
            before, _, after = self._delta_chunk(b'{"content":""}').rpartition(b'""')
            self._around = before, after
        return encode_json(text).join(self._around)

    def _delta(self, event: ReasoningDelta | ToolCallDelta) -> bytes:
        match event:
            case ReasoningDelta():
                if not event.text:
                    return b""
                return self._delta_chunk(b'{"reasoning_content":%b}' % encode_json(event.text))
            case ToolCallDelta():
                call = {"index": event.index, **_describe_call(event.call)}
                return self._delta_chunk(b'{"tool_calls":[%b]}' % encode_json(call))

    def _delta_chunk(self, delta: bytes, logprobs: bytes = _NULL) -> bytes:
        return self._chunk(_DELTA % (delta, logprobs, _NULL))


class CompletionChunks(_Chunks):
    kind = b"text_completion"
    prefix = b"cmpl"
    empty = b'[{"index":0,"text":"","logprobs":null,"finish_reason":%b}]'
    _told = 0

    def _start(self) -> bytes:
        return self._chunk(self.empty % _NULL)

    def _text(self, event: TextDelta) -> bytes:
        if not (event.text or event.logprobs):
            return b""
        logprobs = encode_json(_text_logprobs(event.logprobs, self._told))
        self._told += len(event.text)
        return self._chunk(_TEXT % (encode_json(event.text), logprobs, _NULL))

    def _delta(self, event: ReasoningDelta | ToolCallDelta) -> bytes:
        return b""  # it has no words for them


def describe_chat(live: LiveStream, answer: Generation) -> msgspec.Struct:
    """Return a whole chat answer."""
    calls = [_describe_call(call) for call in answer.tool_calls] if answer.tool_calls else None
    message = _MessageBody(
        role="assistant",
        content=answer.text or None if calls else answer.text,
        refusal=None,
        reasoning_content=answer.reasoning or msgspec.UNSET,
        tool_calls=calls or msgspec.UNSET,
    )
    reason = _FINISH_REASONS[answer.finish_reason]
    choice = _ChatChoice(0, message, _chat_logprobs(answer.logprobs), reason)
    return _whole(f"chatcmpl-{live.id}", "chat.completion", answer, choice)


def describe_completion(live: LiveStream, answer: Generation) -> msgspec.Struct:
    """Return a whole plain completion."""
    reason = _FINISH_REASONS[answer.finish_reason]
    choice = _TextChoice(0, answer.text, _text_logprobs(answer.logprobs), reason)
    return _whole(f"cmpl-{live.id}", "text_completion", answer, choice)


def describe_usage(usage: Usage) -> _UsageBody:
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    return _UsageBody(prompt, completion, prompt + completion)


def _whole(
    answer_id: str, kind: str, answer: Generation, choice: _ChatChoice | _TextChoice
) -> _WholeBody:
    return _WholeBody(
        id=answer_id,
        object=kind,
        created=int(time.time()),
        model=str(answer.ref),
        choices=[choice],
        usage=describe_usage(answer.usage),
        switched=describe_switches(answer.switches) if answer.switches else msgspec.UNSET,
        truncated=answer.truncated or msgspec.UNSET,
    )


def _text_logprobs(logprobs: Sequence[TokenLogprob], offset: int = 0) -> dict[str, Any] | None:
    return describe_text_logprobs(logprobs, offset) if logprobs else None


def _chat_logprobs(logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
    return {"content": describe_logprobs(logprobs), "refusal": None} if logprobs else None


def _describe_call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _frame(data: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % encode_json(data)
