"""What both chat faces accept for messages, tools and formats, and what it means to the core.

The shapes are OpenAI's, with Ollama's spellings beside them (`images`, arguments as an object).
Fields that are not named here are ignored; null is the same as absent.
"""

import base64
import binascii
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from gateway.core.errors import InvalidRequest
from gateway.core.messages import (
    ImagePart,
    Message,
    ResponseFormat,
    Role,
    TextPart,
    Tool,
    ToolCall,
)
from gateway.http.encoding import encode_json

MAX_MESSAGES = 10_000


class TextPartBody(msgspec.Struct, tag="text", tag_field="type"):
    text: str


class ImageUrlBody(msgspec.Struct):
    url: str


class ImagePartBody(msgspec.Struct, tag="image_url", tag_field="type"):
    image_url: ImageUrlBody | str


class CalledFunctionBody(msgspec.Struct):
    name: str
    arguments: str | dict[str, Any] = "{}"


class ToolCallBody(msgspec.Struct):
    function: CalledFunctionBody
    id: str | None = None


class MessageBody(msgspec.Struct):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPartBody | ImagePartBody] | None = None
    images: list[str] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCallBody] | None = None
    tool_call_id: str | None = None
    tool_name: str | None = None
    name: str | None = None


class FunctionBody(msgspec.Struct):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class ToolBody(msgspec.Struct):
    function: FunctionBody
    type: Literal["function"] | None = None


class NamedFunctionBody(msgspec.Struct):
    name: str


class ToolChoiceBody(msgspec.Struct):
    function: NamedFunctionBody


class JsonSchemaBody(msgspec.Struct):
    schema: dict[str, Any] | None = None


class ResponseFormatBody(msgspec.Struct):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaBody | None = None
    schema: dict[str, Any] | None = None


def to_messages(bodies: Sequence[MessageBody]) -> tuple[Message, ...]:
    """Return the conversation; raises InvalidRequest that names the first message it cannot be."""
    if not bodies:
        raise InvalidRequest(
            "'messages' is empty.", hint="Send at least one message.", param="messages"
        )
    if len(bodies) > MAX_MESSAGES:
        raise InvalidRequest(f"There are more than {MAX_MESSAGES} messages.", param="messages")
    return tuple([_to_message(body, f"messages[{index}]") for index, body in enumerate(bodies)])


def to_user_message(text: str, images: Sequence[str]) -> Message:
    """Return one user message of a prompt with its base64 images."""
    return Message("user", (TextPart(text), *_plain_images(images, "images")))


def to_tools(bodies: Sequence[ToolBody] | None) -> tuple[Tool, ...]:
    functions = [body.function for body in bodies or ()]
    return tuple(
        Tool(each.name, each.description or "", each.parameters or {}) for each in functions
    )


def to_tool_choice(choice: str | ToolChoiceBody | None, tools: Sequence[Tool]) -> str | None:
    """Return `auto`, `none`, `required` or the name of the one tool to be called."""
    if isinstance(choice, ToolChoiceBody):
        name = choice.function.name
        if name not in {tool.name for tool in tools}:
            raise InvalidRequest(
                f"'tool_choice' names '{name}', which is not in 'tools'.", param="tool_choice"
            )
        return name
    if choice not in (None, "auto", "none", "required"):
        raise InvalidRequest(
            f"'tool_choice' is '{choice}'; it must be auto, none, required or a function.",
            param="tool_choice",
        )
    if choice == "required" and not tools:
        raise InvalidRequest("'tool_choice' is required, but there are no 'tools'.", param="tools")
    return choice


def to_response_format(body: ResponseFormatBody | None) -> ResponseFormat | None:
    if body is None:
        return None
    if body.type != "json_schema":
        return ResponseFormat(body.type)
    schema = body.json_schema.schema if body.json_schema else body.schema
    if schema is None:
        raise InvalidRequest(
            "'response_format' is json_schema, but has no schema.", param="response_format"
        )
    return ResponseFormat("json_schema", schema)


def _to_message(body: MessageBody, path: str) -> Message:
    parts = _to_parts(body, path)
    if not parts and body.role != "assistant":
        raise InvalidRequest(f"`$.{path}.content` is missing.", param=f"{path}.content")
    role: Role = "system" if body.role == "developer" else body.role
    return Message(
        role=role,
        parts=parts,
        reasoning=body.reasoning_content or body.reasoning,
        tool_calls=tuple([_to_tool_call(call) for call in body.tool_calls or ()]),
        tool_call_id=body.tool_call_id,
        tool_name=body.tool_name or (body.name if role == "tool" else None),
    )


def _to_parts(body: MessageBody, path: str) -> tuple[TextPart | ImagePart, ...]:
    parts: list[TextPart | ImagePart] = []
    if isinstance(body.content, str):
        if not body.images:
            return (TextPart(body.content),)
        parts.append(TextPart(body.content))
    else:
        for index, part in enumerate(body.content or ()):
            if isinstance(part, TextPartBody):
                parts.append(TextPart(part.text))
            else:
                parts.append(_image_of_url(part, f"{path}.content[{index}].image_url"))
    parts.extend(_plain_images(body.images or (), f"{path}.images"))
    return tuple(parts)


def _to_tool_call(body: ToolCallBody) -> ToolCall:
    arguments = body.function.arguments
    text = arguments if isinstance(arguments, str) else encode_json(arguments).decode()
    return ToolCall(id=body.id or "", name=body.function.name, arguments=text)


def _image_of_url(part: ImagePartBody, path: str) -> ImagePart:
    url = part.image_url if isinstance(part.image_url, str) else part.image_url.url
    header, comma, data = url.partition(",")
    if not header.startswith("data:"):
        raise InvalidRequest(
            f"The image at `$.{path}` is not a data: URL; remote images are off.",
            hint="Send the image itself, as data:image/png;base64,...",
            param=path,
        )
    if not comma or not header.endswith(";base64"):
        raise InvalidRequest(f"The data: URL at `$.{path}` is not in base64.", param=path)
    return _decode_image(data, path)


def _plain_images(images: Sequence[str], path: str) -> list[ImagePart]:
    return [_decode_image(data, f"{path}[{index}]") for index, data in enumerate(images)]


def _decode_image(text: str, path: str) -> ImagePart:
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(f"The image at `$.{path}` is not valid base64.", param=path) from None
    if not data:
        raise InvalidRequest(f"The image at `$.{path}` is empty.", param=path)
    return ImagePart(data)
