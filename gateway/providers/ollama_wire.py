"""Ollama's chat and generate format: requests to bytes, NDJSON chunks to events. Pure: no I/O.

Source: Ollama's docs/api.md, api/types.go and server/routes.go; where they differ, the code.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from gateway.core.errors import (
    GatewayError,
    IncompleteStream,
    InvalidRequest,
    InvalidText,
    ProviderProtocolError,
    UnsupportedCapability,
)
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
from gateway.core.messages import (
    NO_OPTIONS,
    GenerateRequest,
    Message,
    ResponseFormat,
    Tool,
    ToolCall,
)
from gateway.core.names import ModelRef
from gateway.providers.ollama_fault_wire import PROVIDER, describe_error_line
from gateway.providers.text_wire import clean_text, read_count

MAX_LINE_BYTES = 8 * 1024 * 1024
"""The longest line accepted: what Ollama's own client takes (api/client.go)."""

THINK_LEVELS = ("low", "medium", "high", "max")

_ABSENT = msgspec.Raw(b"")


class _OptionsBody(msgspec.Struct, omit_defaults=True, gc=False):
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    num_predict: int | None = None
    stop: tuple[str, ...] = ()
    num_ctx: int | None = None


class _CallBody(msgspec.Struct):
    id: str
    function: dict[str, Any]


class _MessageBody(msgspec.Struct, omit_defaults=True, gc=False):
    role: str
    # No default: Ollama's templates read the content of every message.
    content: str
    thinking: str | None = None
    images: list[bytes] | None = None  # msgspec writes bytes as plain base64
    tool_calls: list[_CallBody] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class _Body(msgspec.Struct, omit_defaults=True, kw_only=True, gc=False):
    """Of chat and generate both: what is absent is left out."""

    model: str
    stream: bool
    messages: list[_MessageBody] | None = None
    prompt: str | None = None
    raw: bool = False
    tools: list[dict[str, Any]] | None = None
    format: str | dict[str, Any] | None = None
    options: _OptionsBody | None = None
    keep_alive: float | int | None = None
    think: bool | str | None = None
    logprobs: bool = False
    top_logprobs: int = 0
    truncate: bool | None = None


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


_encode = msgspec.json.Encoder().encode
_LINES = msgspec.json.Decoder(_Line)


def encode_request(
    request: GenerateRequest,
    ref: ModelRef,
    num_ctx: int | None = None,
    *,
    truncate: bool | None = None,
) -> tuple[str, bytes]:
    """Return the route (`/api/chat` or `/api/generate`) and the body for `request`.

    `num_ctx` must be the same for every request to a model: a change makes Ollama load it anew.
    `truncate` is whether it may cut a prompt that is too long; by itself it does.
    Raises InvalidRequest for what Ollama would refuse or cannot be told.
    """
    body = _Body(
        model=ref.model,
        stream=True,
        format=_encode_format(request.response_format),
        options=_encode_options(request, num_ctx),
        keep_alive=encode_keep_alive(request.keep_alive_s),
        think=_require_think(request.think),
        logprobs=request.options.logprobs is not None,
        top_logprobs=request.options.logprobs or 0,
        truncate=truncate,
    )
    messages, said = request.messages, request.said
    if request.prompt is not None and not request.raw and (request.tools or said):
        messages = (Message.user(request.prompt),)  # generate takes neither
    elif request.prompt is not None:
        body.prompt, body.raw = request.prompt + (said.text if said else ""), request.raw
        return "/api/generate", _encode_body(body)
    if said is not None:
        messages = said.after(messages)
    body.messages = [_encode_message(message) for message in messages]
    body.tools = _encode_tools(request.tools, request.tool_choice)
    return "/api/chat", _encode_body(body)


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
            if cut == len(chunk) and not self._rest:  # whole lines, as nearly always
                self._read(chunk, events)
            else:
                self._take(chunk, cut, events)
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


def _encode_body(body: _Body) -> bytes:
    try:
        return _encode(body)
    except UnicodeError:
        raise InvalidText("The request contains a lone surrogate.") from None
    except RecursionError:
        raise InvalidRequest("The request nests too deep.") from None


def _encode_format(wanted: ResponseFormat | None) -> str | dict[str, Any] | None:
    # Ollama answers 500 to a format it does not know, so it is checked here.
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return "json"
    if not isinstance(wanted.schema, dict):
        raise InvalidRequest("A json_schema format needs a schema.", param="response_format")
    return wanted.schema


def _encode_options(request: GenerateRequest, num_ctx: int | None) -> _OptionsBody:
    options = request.options
    if options is NO_OPTIONS or options == NO_OPTIONS:
        return _OptionsBody(num_ctx=num_ctx)
    for param, given in (("logit_bias", options.logit_bias), ("stop_token_ids", options.stop_ids)):
        if given:
            raise UnsupportedCapability(
                f"Ollama's API takes no '{param}'.", hint="Leave it out.", param=param
            )
    return _OptionsBody(
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        min_p=options.min_p,
        repeat_penalty=options.repetition_penalty,
        frequency_penalty=options.frequency_penalty,
        presence_penalty=options.presence_penalty,
        seed=options.seed,
        num_predict=request.max_tokens_left,
        stop=options.stop,
        num_ctx=num_ctx,
    )


def encode_keep_alive(seconds: float | None) -> float | int | None:
    """Return `keep_alive` as Ollama takes it: whole seconds as an integer."""
    if seconds is None:
        return None
    if not math.isfinite(seconds):
        raise InvalidRequest("'keep_alive' is not a number of seconds.", param="keep_alive")
    return int(seconds) if seconds == int(seconds) else seconds


def _require_think(think: bool | str | None) -> bool | str | None:
    if isinstance(think, str) and think not in THINK_LEVELS:
        raise InvalidRequest(
            f"'think' is true, false or one of: {', '.join(THINK_LEVELS)}.", param="think"
        )
    return think


def _encode_message(message: Message) -> _MessageBody:
    images = message.images
    return _MessageBody(
        message.role,
        message.text,
        message.reasoning,
        [image.data for image in images] if images else None,
        _encode_calls(message.tool_calls) if message.tool_calls else None,
        message.tool_name,
        message.tool_call_id,
    )


def _encode_calls(calls: Sequence[ToolCall]) -> list[_CallBody]:
    return [
        _CallBody(
            call.id, {"index": index, "name": call.name, "arguments": _encode_arguments(call)}
        )
        for index, call in enumerate(calls)
    ]


def _encode_arguments(call: ToolCall) -> msgspec.Raw:
    text = call.arguments.strip() or "{}"
    try:
        msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise InvalidRequest(
            f"The arguments of the call of '{call.name}' are not a JSON object.", param="messages"
        ) from None
    return msgspec.Raw(text.encode())


def _encode_tools(tools: tuple[Tool, ...], choice: str | None) -> list[dict[str, Any]] | None:
    # Ollama has no tool_choice: hiding tools is all that can be done, nobody can force a call.
    if choice == "none" or not tools:
        return None
    offered = [tool for tool in tools if tool.name == choice] or tools
    empty = {"type": "object", "properties": {}}
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters or empty,
            },
        }
        for tool in offered
    ]


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
