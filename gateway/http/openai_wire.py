"""Bodies of the OpenAI face and the requests they make.

Source: the OpenAI API reference for chat completions and completions; what would change
the answer and is not supported is refused (`openai_unsupported`), what is not named is ignored, and
null is the same as absent. `options`, `keep_alive`, `continue_on_failure`, `truncate`, `top_k`,
`min_p` and `repetition_penalty` are taken beyond it.
"""

import msgspec

from gateway.core.errors import InvalidRequest
from gateway.core.messages import GenerateRequest, Options
from gateway.http import wire
from gateway.http.body import decode_body
from gateway.http.openai_unsupported import UnsupportedBody, require_supported
from gateway.http.options import first_of, parse_keep_alive, to_options
from gateway.http.plain import (
    PlainMessage,
    PlainOptions,
    decode_plain,
    read_messages,
    read_options,
)
from gateway.http.stream import NativeOptionsBody

# OpenAI's levels, in the words of the core.
_EFFORTS: dict[str, bool | str] = {
    "none": False,
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "high",
}


class StreamOptionsBody(msgspec.Struct):
    include_usage: bool | None = None


class CommonBody(UnsupportedBody, kw_only=True):
    """What both kinds of completion share; the sampling options stand at the top."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptionsBody | None = None
    n: int | None = None
    options: NativeOptionsBody | None = None
    keep_alive: float | str | None = None
    continue_on_failure: bool | None = None
    truncate: bool | None = None


class ChatBody(CommonBody, kw_only=True):
    messages: list[wire.MessageBody]
    max_completion_tokens: int | None = None
    tools: list[wire.ToolBody] | None = None
    tool_choice: str | wire.ToolChoiceBody | None = None
    parallel_tool_calls: bool | None = None
    response_format: wire.ResponseFormatBody | None = None
    reasoning_effort: str | None = None


class CompletionBody(CommonBody, kw_only=True):
    prompt: str | list[str]


class PlainChatBody(PlainOptions, kw_only=True, gc=False):
    """What nearly all chats are; each field is one of ChatBody."""

    model: str
    messages: list[PlainMessage]
    stream: bool | None = None
    stream_options: StreamOptionsBody | None = None
    max_completion_tokens: int | None = None


class Completion(msgspec.Struct, frozen=True):
    """What is to be generated, and how the caller wants it back."""

    request: GenerateRequest
    is_stream: bool
    includes_usage: bool


_PLAIN_CHAT = msgspec.json.Decoder(PlainChatBody)
_CHAT = msgspec.json.Decoder(ChatBody)
_COMPLETION = msgspec.json.Decoder(CompletionBody)


def parse_chat(data: bytes, request_id: str, caller: str = "") -> Completion:
    """Return what a chat body of `caller` asks for; raises InvalidRequest and its kind."""
    return _parse_plain_chat(data, request_id, caller) or _parse_chat(data, request_id, caller)


def _parse_plain_chat(data: bytes, request_id: str, caller: str) -> Completion | None:
    body = decode_plain(data, _PLAIN_CHAT)
    if body is None:
        return None
    if body.max_completion_tokens is not None:
        body.max_tokens = body.max_completion_tokens
    messages, options = read_messages(body.messages), read_options(body)
    if messages is None or options is None:
        return None
    request = GenerateRequest(
        id=request_id,
        model=body.model,
        messages=messages,
        options=options,
        caller=caller,
        is_whole=not body.stream,
    )
    return Completion(request, bool(body.stream), _includes_usage(body.stream_options))


def _parse_chat(data: bytes, request_id: str, caller: str) -> Completion:
    body = decode_body(data, _CHAT)
    tools = wire.to_tools(body.tools)
    if body.max_completion_tokens is not None:
        body.max_tokens = body.max_completion_tokens
    request = GenerateRequest(
        id=request_id,
        model=body.model,
        messages=wire.to_messages(body.messages),
        options=_read_options(body),
        tools=tools,
        tool_choice=wire.to_tool_choice(body.tool_choice, tools),
        parallel_tool_calls=body.parallel_tool_calls is not False,
        response_format=wire.to_response_format(body.response_format),
        think=_read_effort(body.reasoning_effort),
        keep_alive_s=parse_keep_alive(body.keep_alive),
        caller=caller,
        continue_on_failure=body.continue_on_failure,
        truncate=body.truncate,
        is_whole=not body.stream,
    )
    return Completion(request, bool(body.stream), _includes_usage(body.stream_options))


def parse_completion(data: bytes, request_id: str, caller: str = "") -> Completion:
    """Return what a completion of `caller` asks for: its prompt is continued as it stands."""
    body = decode_body(data, _COMPLETION)
    request = GenerateRequest(
        id=request_id,
        model=body.model,
        prompt=_read_prompt(body.prompt),
        raw=True,
        options=_read_options(body),
        keep_alive_s=parse_keep_alive(body.keep_alive),
        caller=caller,
        continue_on_failure=body.continue_on_failure,
        truncate=body.truncate,
        is_whole=not body.stream,
    )
    return Completion(request, bool(body.stream), _includes_usage(body.stream_options))


def _includes_usage(options: StreamOptionsBody | None) -> bool:
    return options is not None and bool(options.include_usage)


def _read_options(body: CommonBody) -> Options:
    require_supported(body)
    if body.n not in (None, 1):
        raise InvalidRequest(
            f"'n' is {body.n}, but one answer is made for a request.",
            hint="Send the request several times.",
            param="n",
        )
    return to_options(first_of(body, body.options))


def _read_prompt(prompt: str | list[str]) -> str:
    if isinstance(prompt, list):
        if len(prompt) != 1:
            raise InvalidRequest(
                f"'prompt' is a list of {len(prompt)} strings; one is allowed.", param="prompt"
            )
        prompt = prompt[0]
    if not prompt:
        raise InvalidRequest("'prompt' is empty.", param="prompt")
    return prompt


def _read_effort(effort: str | None) -> bool | str | None:
    if effort is None:
        return None
    if effort not in _EFFORTS:
        raise InvalidRequest(
            f"'reasoning_effort' is '{effort[:40]}'; it must be one of: {', '.join(_EFFORTS)}.",
            param="reasoning_effort",
        )
    return _EFFORTS[effort]
