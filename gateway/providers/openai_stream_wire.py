"""Streams of the OpenAI API to events: chunks of chat and of completions. Pure: no I/O.

Source: the OpenAI API reference ("chat completion chunk"); vLLM, SGLang, llama.cpp, TGI and
transformers where they differ.
"""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import msgspec

from gateway.core.errors import ProviderError, ProviderProtocolError
from gateway.core.events import (
    Delta,
    Event,
    Finished,
    FinishReason,
    ReasoningDelta,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from gateway.core.messages import ToolCall
from gateway.core.names import ModelRef
from gateway.providers.openai_fault_wire import Faults
from gateway.providers.sse_wire import MAX_EVENT_BYTES, EventParser, EventTooLong
from gateway.providers.text_wire import read_count

_ABSENT = msgspec.Raw(b"")
_NOTHING = (b"", b"null")
_LAST = b"[DONE]"
PIECE_BYTES = 64
"""What a piece of a tool call is counted as beside its text, so that empty ones end, too."""

# What is not here is an end like any other: "stop", "eos_token", "stop_sequence".
_REASONS: dict[str, FinishReason] = {
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "error",  # cut short, and not by the model
}
_GIVEN_UP = ("abort", "error")
"""How vLLM and SGLang end an answer that they do not finish."""


class _FunctionPart(msgspec.Struct):
    name: str | None = None
    arguments: msgspec.Raw = _ABSENT


class _CallPart(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _FunctionPart | None = None


class _DeltaPart(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[_CallPart] | None = None


class _LogprobPart(msgspec.Struct):
    token: str
    logprob: float | None = None
    bytes: list[int] | None = None
    top_logprobs: list["_LogprobPart"] | None = None


class _LogprobsPart(msgspec.Struct):
    """A chat has `content`, a completion the lists beside it; mlx_lm.server has ids for tokens."""

    content: list[_LogprobPart] | None = None
    tokens: list[str | int] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[Any] | None = None


class _ChoicePart(msgspec.Struct):
    index: int | None = None
    delta: _DeltaPart | None = None
    text: str | None = None
    logprobs: _LogprobsPart | None = None
    finish_reason: str | None = None


class _UsagePart(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Chunk(msgspec.Struct):
    choices: list[_ChoicePart] | None = None
    usage: _UsagePart | None = None
    error: msgspec.Raw = _ABSENT
    object: str | None = None


_decode = msgspec.json.Decoder(_Chunk).decode


class _Call:
    """A tool call as far as it has come."""

    def __init__(self) -> None:
        self.id = ""
        self.name = ""
        self.arguments: list[str] = []
        self.tokens = 0
        self.logprobs: tuple[TokenLogprob, ...] = ()


class AnswerReader:
    """Turns the bytes of one answer into events, however they are cut into chunks.

    `feed` and `end` yield everything but the end; `finished` holds that once it is known. `lines`
    counts what the server said, comments included: one that says them is alive.
    """

    def __init__(
        self,
        faults: Faults,
        request_id: str,
        ref: ModelRef,
        max_event_bytes: int = MAX_EVENT_BYTES,
    ) -> None:
        self.finished: Finished | None = None
        self._faults = faults
        self._request_id = request_id
        self._ref = ref
        self._parser = EventParser(max_event_bytes)
        self._max_bytes = max_event_bytes
        self._has_started = False
        self._reason: FinishReason | None = None
        self._usage: _UsagePart | None = None
        self._tokens = 0
        self._calls: list[_Call] = []
        self._by_index: dict[int, _Call] = {}
        self._held = 0
        self._told = 0

    @property
    def lines(self) -> int:
        return self._parser.lines

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Yield the events that `chunk` completes.

        Raises what an error inside the stream means, and ProviderProtocolError for rubbish, each
        after the events before it.
        """
        try:
            for data in self._parser.feed(chunk):
                if data == _LAST:
                    self._finish()
                    return
                yield from self._read(data)
        except EventTooLong:
            raise self._too_long() from None

    def end(self) -> Iterator[Event]:
        """The connection ended well: finish, or raise IncompleteStream if the answer did not end.

        Not every server says `[DONE]`: an answer is whole once it gave its reason to end.
        """
        try:
            rest = self._parser.end()
        except EventTooLong:
            raise self._too_long() from None
        if rest != _LAST:
            with suppress(ProviderProtocolError):  # it was cut
                yield from self._read(rest)
        self._finish()

    def _finish(self) -> None:
        if self._reason is None:
            raise self._faults.incomplete()
        usage = self._usage or _UsagePart()
        counted = usage.completion_tokens
        self.finished = Finished(
            reason="tool_calls" if self._told and self._reason == "stop" else self._reason,
            usage=Usage(
                read_count(usage.prompt_tokens or 0),
                read_count(self._tokens if counted is None else counted),
            ),
        )

    def _read(self, data: bytes) -> list[Event]:
        if not data or data.isspace():
            return []
        try:
            chunk = _decode(data)
            if (error := bytes(chunk.error)) not in _NOTHING:
                raise self._faults.of_event(error, self._ref)
            if chunk.object == "error":
                raise self._faults.of_event(data, self._ref)
            events: list[Event] = [] if self._has_started else [Started(self._ref)]
            self._has_started = True
            self._usage = chunk.usage or self._usage
            for choice in chunk.choices or ():
                if not choice.index:
                    events += self._deltas(choice)
            return events
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            raise self._faults.unreadable("sent an unreadable event", data) from None

    def _deltas(self, choice: _ChoicePart) -> list[Delta]:
        part = choice.delta or _DeltaPart()
        logprobs = _read_logprobs(choice.logprobs)
        # A chunk is one token as far as anyone can tell: the first delta of it carries it.
        tokens = max(1, len(logprobs))
        deltas: list[Delta] = []
        if thought := part.reasoning_content or part.reasoning:
            deltas.append(ReasoningDelta(thought, tokens, logprobs))
            self._tokens += tokens
            tokens, logprobs = 0, ()
        text = part.content or part.refusal or choice.text
        if text or (logprobs and not part.tool_calls):
            deltas.append(TextDelta(text or "", tokens, logprobs))
            self._tokens += tokens
            tokens, logprobs = 0, ()
        for piece in part.tool_calls or ():
            self._join(piece, tokens, logprobs)
            self._tokens += tokens
            tokens, logprobs = 0, ()
        if choice.finish_reason:  # some servers say "" where they mean null
            deltas += self._conclude(choice.finish_reason)
        return deltas

    def _join(self, piece: _CallPart, tokens: int, logprobs: tuple[TokenLogprob, ...]) -> None:
        """Add a piece to the call that it belongs to."""
        function = piece.function or _FunctionPart()
        call = self._find(piece, function.name)
        call.id = call.id or piece.id or ""
        call.name = call.name or function.name or ""
        text = _read_piece(bytes(function.arguments))
        call.arguments.append(text)
        call.tokens += tokens
        call.logprobs += logprobs
        self._held += len(text) + PIECE_BYTES
        if self._held > self._max_bytes:
            raise self._too_long()

    def _find(self, piece: _CallPart, name: str | None) -> _Call:
        last = self._calls[-1] if self._calls else None
        call = last if piece.index is None else self._by_index.get(piece.index)
        # Some servers leave the index out, or give every call the same one.
        is_other = bool(call and name and (piece.index is None or piece.id)) and (
            call is not None and (not piece.id or piece.id != call.id)
        )
        if call is None or is_other:
            call = _Call()
            self._calls.append(call)
            if piece.index is not None:
                self._by_index[piece.index] = call
        return call

    def _conclude(self, reason: str) -> list[Delta]:
        """Take note of why the answer ends, and give its calls, which are whole now."""
        if reason in _GIVEN_UP:
            name = self._faults.provider
            raise ProviderError(name, f"{name} gave the answer up ({reason}).")
        self._reason = _REASONS.get(reason, "stop")
        calls, self._calls = self._calls, []
        self._by_index.clear()
        deltas: list[Delta] = []
        for call in calls:
            told = self._tell(call)
            if told is not None:
                deltas.append(ToolCallDelta(self._told, told, call.tokens, call.logprobs))
                self._told += 1
        return deltas

    def _tell(self, call: _Call) -> ToolCall | None:
        arguments = "".join(call.arguments).strip() or "{}"
        try:
            msgspec.json.decode(arguments, type=dict[str, msgspec.Raw])
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            if self._reason == "length":
                return None  # cut by the limit: what is left is no call
            raise self._faults.unreadable(
                "sent a tool call whose arguments are no JSON object"
            ) from None
        if not call.name:
            raise self._faults.unreadable("sent a tool call without a name")
        return ToolCall(call.id or f"call_{self._request_id}_{self._told}", call.name, arguments)

    def _too_long(self) -> ProviderError:
        return self._faults.unreadable(f"sent an event of more than {self._max_bytes} bytes")


def _read_piece(raw: bytes) -> str:
    """Return a piece of arguments: text, or an object where a server sends them whole."""
    if raw in _NOTHING:
        return ""
    return msgspec.json.decode(raw, type=str) if raw[:1] == b'"' else raw.decode()


def _read_logprobs(part: _LogprobsPart | None) -> tuple[TokenLogprob, ...]:
    if part is None:
        return ()
    if part.content:
        return tuple(_read_logprob(each) for each in part.content)
    found = []
    for index, token in enumerate(part.tokens or ()):
        if isinstance(token, int):
            return ()
        logprob = _at(part.token_logprobs, index)
        found.append(
            TokenLogprob(
                token,
                _raw(token),
                0.0 if logprob is None else logprob,
                _rank(_at(part.top_logprobs, index)),
            )
        )
    return tuple(found)


def _rank(top: Any) -> tuple[TokenLogprob, ...]:
    """Return the likeliest tokens of a step of a completion, likeliest first."""
    if not isinstance(top, dict):
        return ()
    numbers = [(token, value) for token, value in top.items() if isinstance(value, int | float)]
    ranked = sorted(numbers, key=lambda pair: -pair[1])
    return tuple(TokenLogprob(token, _raw(token), float(value)) for token, value in ranked)


def _read_logprob(part: _LogprobPart) -> TokenLogprob:
    raw = _raw(part.token)
    if part.bytes is not None and all(0 <= value < 256 for value in part.bytes):
        raw = bytes(part.bytes)
    top = tuple(_read_logprob(other) for other in part.top_logprobs or ())
    return TokenLogprob(part.token, raw, 0.0 if part.logprob is None else part.logprob, top)


def _raw(token: str) -> bytes:
    return token.encode("utf-8", "surrogatepass")


def _at(items: list[Any] | None, index: int) -> Any:
    return items[index] if items and index < len(items) else None
