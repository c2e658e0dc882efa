"""Messages and tools in the form that chat templates take. Pure.

Source: the chat-template documentation of transformers, and the templates of known models.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec

from gateway.core.errors import InvalidRequest
from gateway.core.messages import Message, TextPart, Tool, ToolCall

NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}


def describe_message(
    message: Message,
    conversation: Sequence[Message],
    id_length: int | None = None,
    *,
    as_text: bool = False,
    in_parts: bool = False,
) -> dict[str, Any]:
    """Return `message` as templates read it; the name of a result's tool is looked up.

    `as_text`: the arguments of calls are JSON as text, not objects. `in_parts`: the content is a
    list of texts and places of images, not one text. Ids are made to have `id_length` letters
    where the template insists on a length. Raises InvalidRequest for arguments that are no JSON
    object.
    """
    content = _describe_parts(message) if in_parts else message.text
    described: dict[str, Any] = {"role": message.role, "content": content}
    if message.reasoning:
        described["reasoning_content"] = message.reasoning
    if message.tool_calls:
        described["tool_calls"] = [
            _describe_call(call, id_length, as_text) for call in message.tool_calls
        ]
    if message.role == "tool":
        name = message.tool_name or _called(message.tool_call_id, conversation)
        described |= {"name": name} if name else {}
        described |= {"tool_call_id": fit_id(message.tool_call_id or "", id_length)}
    return described


def describe_tools(tools: Sequence[Tool]) -> list[dict[str, Any]] | None:
    """Return the definitions; no tools are None, which templates take for absent."""
    described = [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters or NO_PARAMETERS,
            },
        }
        for tool in tools
    ]
    return described or None


def template_settings(think: bool | str | None) -> dict[str, Any]:
    """Return what tells templates to reason or not; each reads its own name, or none."""
    if think is None:
        return {}
    settings: dict[str, Any] = {"enable_thinking": bool(think), "thinking": bool(think)}
    if isinstance(think, str):
        settings["reasoning_effort"] = think
    return settings


def fit_id(call_id: str, length: int | None) -> str:
    """Return the id itself, or letters and digits of that length that stand for it."""
    if length is None or (len(call_id) == length and call_id.isalnum()):
        return call_id
    return hashlib.sha256(call_id.encode()).hexdigest()[:length]


def _describe_parts(message: Message) -> list[dict[str, str]]:
    """Return the parts in their order; templates may count on there being one."""
    return [
        {"type": "text", "text": part.text} if isinstance(part, TextPart) else {"type": "image"}
        for part in message.parts or (TextPart(""),)
    ]


def _describe_call(call: ToolCall, id_length: int | None, as_text: bool) -> dict[str, Any]:
    text = call.arguments.strip() or "{}"
    try:
        arguments = msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise InvalidRequest(
            f"The arguments of the call of '{call.name}' are not a JSON object.", param="messages"
        ) from None
    function = {"name": call.name, "arguments": text if as_text else arguments}
    return {"id": fit_id(call.id, id_length), "type": "function", "function": function}


def _called(call_id: str | None, conversation: Sequence[Message]) -> str | None:
    calls = [call for message in conversation for call in message.tool_calls]
    return next((call.name for call in reversed(calls) if call.id == call_id), None)
