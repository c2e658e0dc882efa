"""Ollama's answers, by chat or generate: NDJSON chunks to events. Pure: no I/O.

Source: Ollama's docs/api.md, api/types.go and server/routes.go; where they differ, the code.
"""

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from gateway.core.errors import GatewayError, IncompleteStream, ProviderProtocolError
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
from gateway.providers.ollama_fault_wire import PROVIDER, describe_error_line
from gateway.providers.text_wire import clean_text, read_count

MAX_LINE_BYTES = 8 * 1024 * 1024
"""The longest line accepted: what Ollama's own client takes (api/client.go)."""

_ABSENT = msgspec.Raw(b"")


class _FunctionLine(msgspec.Struct, gc=False):
    name: str = ""
    # Raw keeps the order of the keys and every digit of the numbers.
    arguments: msgspec.Raw = _ABSENT


class _CallLine(msgspec.Struct, gc=False):
    function: _FunctionLine
    id: str | None = None


class _LogprobLine(msgspec.Struct, gc=False):
    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list["_LogprobLine"] | None = None


class _MessageLine(msgspec.Struct, gc=False):
    content: str | None = None
    thinking: str | None = None
    tool_calls: list[_CallLine] | None = None


class _Line(msgspec.Struct, gc=False):
    """One line of chat or generate; generate has no message but the same fields beside it."""

    message: _MessageLine | None = None
    response: str | None = None
    thinking: str | None = None
    tool_calls: list[_CallLine] | None = None
    logprobs: list[_LogprobLine] | None = None
    done: bool = False
    done_reason: str | None = None
    prompt_eval_count: int | None = None
    eval_count: int | None = None
    error: msgspec.Raw = _ABSENT


_LINES = msgspec.json.Decoder(_Line)


class AnswerReader:
    """Turns the bytes of one answer into events, however they are cut into chunks.

    `feed` and `end` return everything but the end; `finished` holds that once it is known, and
    `lines` counts the lines read so far.
    """

    def __init__(
        self,
        request_id: str,
        ref: ModelRef,
        max_line_bytes: int = MAX_LINE_BYTES,
        *,
        joins: bool = False,
    ) -> None:
        """`joins` makes one delta of the text of lines that come together."""
        self.finished: Finished | None = None
        self.lines = 0
        self._request_id = request_id
        self._ref = ref
        self._max_line_bytes = max_line_bytes
        self._joins = joins
        self._rest = bytearray()
        self._silent_lines = 0
        self._calls = 0

    def feed(self, chunk: bytes) -> Iterable[Event]:
        """Return the events of the lines that `chunk` completes.

        Who goes through them gets what an error line means raised, and ProviderProtocolError for
        rubbish, each after the events before it.
        """
        events: list[Event] = []
        cut = chunk.rfind(b"\n") + 1
        try:
            if cut != len(chunk) or self._rest:
                self._take(chunk, cut, events)
            elif (
                self.lines
                and chunk.find(b"\n") == cut - 1
                and chunk.startswith(b"{")
                and cut <= self._max_line_bytes
            ):
                self._read_line(chunk, events)
            else:
                self._read(chunk, events)
        except GatewayError as error:
            return _broken_off(events, error)
        return events

    def end(self) -> Iterable[Event]:
        """Return the events of a last line without a line end, as `feed` does; then comes
        IncompleteStream if need be."""
        events: list[Event] = []
        rest = bytes(self._rest)
        self._rest.clear()
        try:
            self._read(rest, events)
            if self.finished is None:
                raise IncompleteStream(PROVIDER, "Ollama's answer ended without its end.")
        except GatewayError as error:
            return _broken_off(events, error)
        return events

    def _read_line(self, line: bytes, events: list[Event]) -> None:
        """Add the events of a line that comes alone and is not the first, as nearly every token."""
        try:
            part = _LINES.decode(line)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            part = self._decode_one(line)  # which says what is wrong
        message = part.message
        if (  # as in `_read`: a function for both would cost each token a call
            message is not None
            and message.content
            and not (message.thinking or message.tool_calls or part.done or part.logprobs)
            and part.error is _ABSENT
        ):
            self.lines += 1
            events.append(TextDelta(message.content))
        else:
            self._read_one(part, events)

    def _take(self, chunk: bytes, cut: int, events: list[Event]) -> None:
        """Read the lines that end before `cut`, and keep the rest."""
        if cut:
            lines = chunk[:cut]
            if self._rest:
                lines = bytes(self._rest) + lines
                self._rest.clear()
            self._read(lines, events)
        if cut < len(chunk) and self.finished is None:
            self._rest += chunk[cut:]
            self._require_bounded(self._rest)

    def _read(self, lines: bytes, events: list[Event]) -> None:
        """Add the events of whole lines."""
        texts: list[str] = []
        try:
            for part in self._decode(lines):
                message = part.message
                if (  # says some text and nothing else, as nearly all lines of a chat do
                    message is not None
                    and message.content
                    and not (message.thinking or message.tool_calls or part.done or part.logprobs)
                    and part.error is _ABSENT
                ):
                    texts.append(message.content)
                    continue
                if texts:
                    self._say(texts, events)
                    texts = []
                self._read_one(part, events)
                if self.finished is not None:
                    return
        finally:
            if texts:
                self._say(texts, events)

    def _say(self, texts: list[str], events: list[Event]) -> None:
        """Add the texts of lines that had nothing else."""
        if not self.lines:
            events.append(Started(self._ref))
        self.lines += len(texts)
        if self._joins and len(texts) > 1:
            events.append(TextDelta("".join(texts), len(texts)))
        else:
            events.extend(map(TextDelta, texts))

    def _read_one(self, part: _Line, events: list[Event]) -> None:
        if (error := bytes(part.error)) and error != b"null":
            raise describe_error_line(error, self._ref)
        told: list[Event] = [] if self.lines else [Started(self._ref)]
        self.lines += 1
        told += self._deltas(part)
        if part.done:
            self.finished = self._finish(part)
        events += told

    def _require_bounded(self, line: bytes | bytearray) -> None:
        if len(line) > self._max_line_bytes:
            raise ProviderProtocolError(
                PROVIDER, f"A line of Ollama's answer is longer than {self._max_line_bytes} bytes."
            )

    def _decode(self, lines: bytes) -> Iterable[_Line]:
        if len(lines) > self._max_line_bytes:
            return self._decode_each(lines)
        try:
            parts = _LINES.decode_lines(lines)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return self._decode_each(lines)
        # It does not mind where the line ends are.
        return parts if len(parts) == lines.count(b"\n") else self._decode_each(lines)

    def _decode_each(self, lines: bytes) -> Iterator[_Line]:
        """Decode line by line: what is before a mistake counts."""
        return map(self._decode_one, filter(bytes.strip, lines.split(b"\n")))

    def _decode_one(self, line: bytes) -> _Line:
        self._require_bounded(line)
        try:
            return _LINES.decode(line)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            said = clean_text(line[:80].decode("utf-8", "replace"))
            raise ProviderProtocolError(
                PROVIDER, f"Ollama's answer has an unreadable line: {said}"
            ) from None

    def _deltas(self, part: _Line) -> list[Delta]:
        message = part.message
        if message is not None:
            thinking, text, calls = message.thinking, message.content, message.tool_calls
        else:
            thinking, text, calls = part.thinking, part.response, part.tool_calls
        # One line is one token as far as anyone can tell: the first delta of a line carries it.
        tokens = 1
        logprobs = _read_logprobs(part.logprobs) if part.logprobs else ()
        deltas: list[Delta] = []
        if thinking:
            deltas.append(ReasoningDelta(thinking, tokens, logprobs))
            tokens, logprobs = 0, ()
        if text or (logprobs and not calls):
            deltas.append(TextDelta(text or "", tokens, logprobs))
            tokens, logprobs = 0, ()
        for call in calls or ():
            deltas.append(ToolCallDelta(self._calls, self._tool_call(call), tokens, logprobs))
            self._calls += 1
            tokens, logprobs = 0, ()
        self._silent_lines += tokens
        return deltas

    def _tool_call(self, call: _CallLine) -> ToolCall:
        return ToolCall(
            id=call.id or f"call_{self._request_id}_{self._calls}",
            name=call.function.name,
            arguments=_read_arguments(bytes(call.function.arguments)),
        )

    def _finish(self, part: _Line) -> Finished:
        reason: FinishReason = "length" if part.done_reason == "length" else "stop"
        counted = part.eval_count
        if counted is None:
            counted = self.lines - self._silent_lines
        return Finished(
            reason="tool_calls" if self._calls else reason,
            usage=Usage(read_count(part.prompt_eval_count or 0), read_count(counted)),
        )


def _broken_off(events: list[Event], error: GatewayError) -> Iterator[Event]:
    yield from events
    raise error


def _read_logprobs(lines: Sequence[_LogprobLine]) -> tuple[TokenLogprob, ...]:
    return tuple([_read_logprob(line) for line in lines])


def _read_logprob(line: _LogprobLine) -> TokenLogprob:
    raw = line.token.encode("utf-8", "surrogatepass")
    if line.bytes is not None and all(0 <= value < 256 for value in line.bytes):
        raw = bytes(line.bytes)
    top = _read_logprobs(line.top_logprobs or ())
    return TokenLogprob(line.token, raw, line.logprob, top)


def _read_arguments(raw: bytes) -> str:
    """Return the arguments as the text of a JSON object; some servers send that text as a string.

    Raises ProviderProtocolError for anything that is no object.
    """
    if raw in (b"", b"null", b'""'):
        return "{}"
    try:
        text = msgspec.json.decode(raw, type=str) if raw[:1] == b'"' else raw.decode()
        msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise ProviderProtocolError(
            PROVIDER, "The arguments of a tool call by Ollama are not a JSON object."
        ) from None
    return text
