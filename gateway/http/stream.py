"""The native face: `POST /api/v1/stream` and the same collected, `POST /api/v1/generate`.

What can be done with a stream once it is open is in `streams`.
"""

from functools import partial
from typing import Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway import telemetry
from gateway.core.errors import InvalidRequest
from gateway.core.events import FinishReason, Generation, Usage
from gateway.core.messages import GenerateRequest, Message
from gateway.http import wire
from gateway.http.body import convert_body, decode_body, read_request
from gateway.http.logprobs import describe_logprobs
from gateway.http.native_events import (
    NativeEvents,
    describe_switches,
    round_timings,
    tool_call,
)
from gateway.http.options import OptionsBody, parse_keep_alive, to_options
from gateway.http.orders import Counter, Order
from gateway.http.plain import (
    PlainMessage,
    PlainOptions,
    decode_plain,
    read_messages,
    read_options,
)
from gateway.services.live import LiveStream
from gateway.settings import Settings


class NativeOptionsBody(OptionsBody, forbid_unknown_fields=True):
    """The gateway's own options: a name that is none is a typing error, and said to be."""


class StreamBody(msgspec.Struct, kw_only=True):
    """Either `messages`, or `prompt` with its `images`."""

    model: str
    messages: list[wire.MessageBody] | None = None
    prompt: str | None = None
    images: list[str] | None = None
    options: NativeOptionsBody | None = None
    tools: list[wire.ToolBody] | None = None
    tool_choice: str | wire.ToolChoiceBody | None = None
    parallel_tool_calls: bool | None = None
    response_format: wire.ResponseFormatBody | None = None
    think: bool | Literal["low", "medium", "high"] | None = None
    keep_alive: float | str | None = None
    detached: bool | None = None
    continue_on_failure: bool | None = None
    truncate: bool | None = None


class PlainStreamBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, gc=False):
    """What nearly all are; each field is one of StreamBody."""

    model: str
    messages: list[PlainMessage]
    options: PlainOptions | None = None
    think: bool | Literal["low", "medium", "high"] | None = None
    detached: bool | None = None


class Asked(msgspec.Struct, frozen=True):
    """What a native body asks for."""

    request: GenerateRequest
    is_detached: bool


_PLAIN = msgspec.json.Decoder(PlainStreamBody)
_DECODER = msgspec.json.Decoder(StreamBody)


class NativeFace:
    """The routes of the native face."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter

    def routes(self) -> list[Route]:
        return [
            Route("/api/v1/stream", self.stream, methods=["POST"]),
            Route("/api/v1/generate", self.generate, methods=["POST"]),
        ]

    async def stream(self, request: Request) -> Response:
        return await self._counter.fill(request, read_stream)

    async def generate(self, request: Request) -> Response:
        return await self._counter.fill(request, read_generation)


def read_stream(data: bytes, request_id: str, caller: str) -> Order:
    """Return the stream that a native body orders; raises InvalidRequest and its kind."""
    asked = parse_stream_request(data, request_id, caller)
    return Order(
        asked.request,
        "native",
        True,
        NativeEvents,
        _describe_answer,
        is_resumable=True,
        is_detached=asked.is_detached,
    )


def read_generation(data: bytes, request_id: str, caller: str) -> Order:
    """Return the whole answer that a native body orders; raises InvalidRequest and its kind."""
    asked = parse_stream_request(data, request_id, caller)
    return Order(asked.request, "native", False, NativeEvents, _describe_answer)


async def read_asked(request: Request, settings: Settings) -> Asked:
    """Return what the body of `request` asks for; raises InvalidRequest and its kind."""
    parse = partial(parse_stream_request, request_id=telemetry.request_id.get())
    return await read_request(request, settings.max_body_bytes, parse)


def parse_stream_request(data: bytes, request_id: str, caller: str = "") -> Asked:
    """Return what a native body of `caller` asks for; raises InvalidRequest and its kind."""
    return _parse_plain(data, request_id, caller) or _parse(data, request_id, caller)


def _parse(data: bytes, request_id: str, caller: str) -> Asked:
    body = decode_body(data, _DECODER)
    return Asked(_to_request(body, request_id, caller), is_detached=body.detached is True)


def _parse_plain(data: bytes, request_id: str, caller: str) -> Asked | None:
    body = decode_plain(data, _PLAIN)
    if body is None:
        return None
    messages, options = read_messages(body.messages), read_options(body.options)
    if messages is None or options is None:
        return None
    request = GenerateRequest(
        id=request_id,
        model=body.model,
        messages=messages,
        options=options,
        think=body.think,
        caller=caller,
    )
    return Asked(request, is_detached=body.detached is True)


def read_stream_values(values: dict[str, Any], request_id: str) -> GenerateRequest:
    """Return what the values of a native body ask for, wherever they came from; raises
    InvalidRequest and its kind."""
    return _to_request(convert_body(values, StreamBody), request_id)


def _to_request(body: StreamBody, request_id: str, caller: str = "") -> GenerateRequest:
    messages, prompt = _read_input(body)
    tools = wire.to_tools(body.tools)
    return GenerateRequest(
        id=request_id,
        model=body.model,
        messages=messages,
        prompt=prompt,
        options=to_options(body.options, "options."),
        tools=tools,
        tool_choice=wire.to_tool_choice(body.tool_choice, tools),
        parallel_tool_calls=body.parallel_tool_calls is not False,
        response_format=wire.to_response_format(body.response_format),
        think=body.think,
        keep_alive_s=parse_keep_alive(body.keep_alive),
        caller=caller,
        continue_on_failure=body.continue_on_failure,
        truncate=body.truncate,
    )


def _read_input(body: StreamBody) -> tuple[tuple[Message, ...], str | None]:
    if (body.messages is None) == (body.prompt is None):
        raise InvalidRequest(
            "Send either 'messages' or 'prompt', and not both.",
            param="messages" if body.messages is not None else None,
        )
    if body.messages is not None:
        if body.images:
            raise InvalidRequest(
                "'images' beside 'messages' belong to no message.",
                hint="Put them into one of the messages.",
                param="images",
            )
        return wire.to_messages(body.messages), None
    if not body.prompt:
        raise InvalidRequest("'prompt' is empty.", param="prompt")
    if body.images:
        return (wire.to_user_message(body.prompt, body.images),), None
    return (), body.prompt


class _AnswerBody(msgspec.Struct, gc=False):
    stream_id: str
    decision_id: str
    model: str
    text: str
    reasoning: str | msgspec.UnsetType
    tool_calls: list[dict[str, str]] | msgspec.UnsetType
    logprobs: list[dict[str, Any]] | msgspec.UnsetType
    finish_reason: FinishReason
    usage: Usage
    timings: dict[str, float | None]
    switched: list[dict[str, str]] | msgspec.UnsetType
    truncated: bool | msgspec.UnsetType


def _describe_answer(live: LiveStream, answer: Generation) -> msgspec.Struct:
    return _AnswerBody(
        stream_id=live.id,
        decision_id=live.id,
        model=str(answer.ref),
        text=answer.text,
        reasoning=answer.reasoning or msgspec.UNSET,
        tool_calls=[tool_call(call) for call in answer.tool_calls] or msgspec.UNSET,
        logprobs=describe_logprobs(answer.logprobs) if answer.logprobs else msgspec.UNSET,
        finish_reason=answer.finish_reason,
        usage=answer.usage,
        timings=round_timings(live.timings),
        switched=describe_switches(answer.switches) if answer.switches else msgspec.UNSET,
        truncated=answer.truncated or msgspec.UNSET,
    )
