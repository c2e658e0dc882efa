"""Requests as Ollama's chat and generate take them: to bytes. Pure: no I/O.

Source: Ollama's docs/api.md, api/types.go and server/routes.go; where they differ, the code.
"""

import math
from collections.abc import Sequence
from typing import Any

import msgspec

from gateway.core.errors import InvalidRequest, InvalidText, UnsupportedCapability
from gateway.core.messages import (
    NO_OPTIONS,
    GenerateRequest,
    Message,
    ResponseFormat,
    Tool,
    ToolCall,
)
from gateway.core.names import ModelRef

THINK_LEVELS = ("low", "medium", "high", "max")


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


_encode = msgspec.json.Encoder().encode


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
