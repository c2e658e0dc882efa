"""What a caller asks for: messages with text and image parts, options, tools. Frozen plain data."""

from typing import Any, Literal

import msgspec

from gateway.core.errors import InvalidText

Role = Literal["system", "user", "assistant", "tool"]


IMAGE_FORMATS = ("PNG", "JPEG", "GIF", "WEBP")
"""The kinds of files that an image may be, by Pillow's names."""


class TextPart(msgspec.Struct, frozen=True, tag="text"):
    text: str


class ImagePart(msgspec.Struct, frozen=True, tag="image"):
    """An encoded image file of one of the IMAGE_FORMATS, as it was sent."""

    data: bytes


class ToolCall(msgspec.Struct, frozen=True):
    """One call of a tool by a model; `arguments` is a JSON object as text."""

    id: str
    name: str
    arguments: str


class Message(msgspec.Struct, frozen=True):
    role: Role
    parts: tuple[TextPart | ImagePart, ...] = ()
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    tool_name: str | None = None

    @classmethod
    def user(cls, text: str) -> "Message":
        return cls(role="user", parts=(TextPart(text),))

    @property
    def text(self) -> str:
        """The text parts, joined as they stand."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))

    @property
    def images(self) -> tuple[ImagePart, ...]:
        return tuple(part for part in self.parts if isinstance(part, ImagePart))


class Tool(msgspec.Struct, frozen=True):
    """A function that the model may call; `parameters` is a JSON Schema."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = {}


class Options(msgspec.Struct, frozen=True):
    """Sampling options; None leaves a value to the model's own defaults.

    `stop_ids` are tokens that end the answer unseen, beside the model's own. `logprobs` is how
    many of the likeliest tokens to name beside each chosen one (None: tell no probabilities).
    `logit_bias` is added to the logits of those tokens, pairs of id and bias.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()

    def over(self, defaults: "Options") -> "Options":
        """Return these options, with those of `defaults` where nothing is said."""
        given = msgspec.structs.asdict(self)
        said = {name: value for name, value in given.items() if value not in (None, ())}
        return msgspec.structs.replace(defaults, **said)


class ResponseFormat(msgspec.Struct, frozen=True):
    """`json_object`, or `json_schema` with the schema that the answer must follow."""

    type: Literal["text", "json_object", "json_schema"]
    schema: dict[str, Any] | None = None


class GenerateRequest(msgspec.Struct, frozen=True):
    """One generation. Either `messages` (a chat) or `prompt` is given.

    A `raw` prompt is continued as it stands; any other prompt goes through the model's template.
    `tool_choice` is auto, none, required or the name of a tool.
    `think` asks for (or forbids) reasoning, `keep_alive` is seconds (negative: for ever).
    `caller` is whose request it is: callers take turns where they wait, and share no prompts.
    """

    id: str
    model: str
    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    raw: bool = False
    options: Options = Options()
    tools: tuple[Tool, ...] = ()
    tool_choice: str | None = None
    parallel_tool_calls: bool = True
    response_format: ResponseFormat | None = None
    think: bool | str | None = None
    keep_alive_s: float | None = None
    caller: str = ""

    @property
    def has_images(self) -> bool:
        return any(message.images for message in self.messages)

    @property
    def text_length(self) -> int:
        """The characters of all texts, images and templates left out."""
        return len(self.prompt or "") + sum(len(message.text) for message in self.messages)


def require_clean_text(text: str, param: str) -> str:
    """Return `text`; raise InvalidText when a database or a model could not hold it.

    PostgreSQL refuses NUL, and a lone surrogate has no UTF-8 form.
    """
    if "\x00" in text:
        raise InvalidText(f"'{param}' contains a NUL character.", param=param)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidText(f"'{param}' contains a lone surrogate.", param=param) from None
    return text
