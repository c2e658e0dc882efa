"""Requests as the OpenAI API has them: chat and completions to bytes. Pure: no I/O.

Source: the OpenAI API reference, and what vLLM, SGLang and llama.cpp take beyond it. What the
caller did not set is never sent: servers refuse what they do not know.
"""

import base64
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from gateway.core.errors import InvalidRequest, InvalidText
from gateway.core.messages import (
    GenerateRequest,
    ImagePart,
    Message,
    ResponseFormat,
    TextPart,
    Tool,
)
from gateway.servers import Continuation

CHAT, COMPLETIONS = "/chat/completions", "/completions"

_IMAGE_TYPES = (
    (b"\x89PNG", "image/png"),
    (b"\xff\xd8", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"RIFF", "image/webp"),
)


class Dialect(msgspec.Struct, frozen=True):
    """How one server wants to be asked; what it refuses is learnt."""

    tells_usage: bool = True
    limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    knows_base64: bool = True

    def after(self, refusal: str) -> "Dialect | None":
        """Return how to ask again after a refusal in these words; None: in no other way."""
        if self.tells_usage and ("stream_options" in refusal or "include_usage" in refusal):
            return replace(self, tells_usage=False)
        if self.limit == "max_tokens" and "max_completion_tokens" in refusal:
            return replace(self, limit="max_completion_tokens")
        if self.knows_base64 and ("encoding_format" in refusal or "base64" in refusal):
            return replace(self, knows_base64=False)
        return None


class _CallBody(msgspec.Struct):
    id: str
    function: dict[str, str]
    type: str = "function"


class _MessageBody(msgspec.Struct, omit_defaults=True):
    role: str
    # No default: templates of servers read the content of every message.
    content: str | list[dict[str, Any]]
    reasoning_content: str | None = None
    tool_calls: list[_CallBody] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    prefix: bool | None = None


class _Body(msgspec.Struct, omit_defaults=True, kw_only=True):
    """Of chat and completions both: what is absent is left out."""

    model: str
    stream: bool
    messages: list[_MessageBody] | None = None
    prompt: str | None = None
    stream_options: dict[str, bool] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    repeat_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    logit_bias: dict[str, float] | None = None
    logprobs: bool | int | None = None
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, bool] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


_encode = msgspec.json.Encoder().encode


def encode_request(
    request: GenerateRequest, model: str, dialect: Dialect, continuation: Continuation = "no"
) -> tuple[str, bytes]:
    """Return the route and the body for `request`; `model` is the name that the server knows, and
    `continuation` how it is told to go on with a message.

    Raises InvalidRequest for what has no form in JSON.
    """
    body = _Body(
        model=model,
        stream=True,
        stream_options={"include_usage": True} if dialect.tells_usage else None,
    )
    _put_options(body, request, dialect)
    if request.prompt is not None and request.raw:
        body.prompt = request.prompt + (request.said.text if request.said else "")
        body.logprobs = request.options.logprobs
        return COMPLETIONS, encode_body(body)
    messages = request.messages
    if request.prompt is not None:
        messages = (Message.user(request.prompt),)
    if request.said is not None:
        messages = request.said.after(messages)
    body.messages = [_encode_message(message) for message in messages]
    if request.said is not None:
        _put_continuation(body, continuation)
    if request.options.logprobs is not None:
        body.logprobs = True
        body.top_logprobs = request.options.logprobs or None
    _put_tools(body, request)
    body.response_format = _encode_format(request.response_format)
    if isinstance(request.think, str):
        body.reasoning_effort = request.think
    elif request.think is not None:
        # The names that chat templates have for it: the one of Qwen's, the other of DeepSeek's.
        body.chat_template_kwargs = {"enable_thinking": request.think, "thinking": request.think}
    return CHAT, encode_body(body)


def encode_body(body: object) -> bytes:
    """Return `body` as JSON; raises InvalidRequest for what has no such form."""
    try:
        return _encode(body)
    except UnicodeError:
        raise InvalidText("The request contains a lone surrogate.") from None
    except RecursionError:
        raise InvalidRequest("The request nests too deep.") from None


def _put_continuation(body: _Body, continuation: Continuation) -> None:
    assert body.messages, "there is the message to go on with"
    if continuation == "continue_final_message":
        body.add_generation_prompt, body.continue_final_message = False, True
    elif continuation == "prefix":
        body.messages[-1].prefix = True


def _put_options(body: _Body, request: GenerateRequest, dialect: Dialect) -> None:
    options = request.options
    body.temperature, body.top_p = options.temperature, options.top_p
    body.top_k, body.min_p = options.top_k, options.min_p
    # llama.cpp calls it by the other name, and passes over what it does not know.
    body.repetition_penalty = body.repeat_penalty = options.repetition_penalty
    body.frequency_penalty = options.frequency_penalty
    body.presence_penalty = options.presence_penalty
    body.seed, body.stop, body.stop_token_ids = options.seed, options.stop, options.stop_ids
    setattr(body, dialect.limit, request.max_tokens_left)
    body.logit_bias = {str(token): bias for token, bias in options.logit_bias} or None


def _put_tools(body: _Body, request: GenerateRequest) -> None:
    if not request.tools:
        return
    body.tools = [_encode_tool(tool) for tool in request.tools]
    if request.tool_choice in (None, "auto", "none", "required"):
        body.tool_choice = request.tool_choice
    else:
        body.tool_choice = {"type": "function", "function": {"name": request.tool_choice}}
    body.parallel_tool_calls = None if request.parallel_tool_calls else False


def _encode_tool(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    function["parameters"] = tool.parameters or {"type": "object", "properties": {}}
    return {"type": "function", "function": function}


def _encode_format(wanted: ResponseFormat | None) -> dict[str, Any] | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return {"type": "json_object"}
    if not isinstance(wanted.schema, dict):
        raise InvalidRequest("A json_schema format needs a schema.", param="response_format")
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": wanted.schema}}


def _encode_message(message: Message) -> _MessageBody:
    return _MessageBody(
        role=message.role,
        content=[_encode_part(part) for part in message.parts] if message.images else message.text,
        reasoning_content=message.reasoning,
        tool_calls=[
            _CallBody(call.id, {"name": call.name, "arguments": call.arguments})
            for call in message.tool_calls
        ]
        or None,
        tool_call_id=message.tool_call_id,
        # Only who gives no id for a result goes by the tool's name.
        name=None if message.tool_call_id else message.tool_name,
    )


def _encode_part(part: TextPart | ImagePart) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    kind = next((name for head, name in _IMAGE_TYPES if part.data.startswith(head)), "image/png")
    data = base64.b64encode(part.data).decode()
    return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}}
