"""What a caller asks for: messages with text and image parts, options, tools. Frozen plain data."""

from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from gateway.core.errors import InvalidText
from gateway.core.names import ModelRef

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
        parts = self.parts
        if len(parts) == 1 and type(parts[0]) is TextPart:  # as nearly always
            return parts[0].text
        return "".join([part.text for part in parts if isinstance(part, TextPart)])

    @property
    def images(self) -> tuple[ImagePart, ...]:
        parts = self.parts
        if len(parts) == 1 and type(parts[0]) is TextPart:
            return ()
        return tuple([part for part in parts if isinstance(part, ImagePart)])


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
        if defaults == NO_OPTIONS:
            return self
        given = msgspec.structs.asdict(self)
        said = {name: value for name, value in given.items() if value not in (None, ())}
        return msgspec.structs.replace(defaults, **said)


NO_OPTIONS = Options()


class ResponseFormat(msgspec.Struct, frozen=True):
    """`json_object`, or `json_schema` with the schema that the answer must follow."""

    type: Literal["text", "json_object", "json_schema"]
    schema: dict[str, Any] | None = None


class Said(msgspec.Struct, frozen=True):
    """The beginning of an answer, which is to be gone on with: what its readers have.

    `calls` counts tool calls, `tokens` what all of it took. `ids` are these tokens where they are
    known, of the model `source` that said them last.
    """

    text: str = ""
    reasoning: str = ""
    calls: int = 0
    tokens: int = 0
    source: ModelRef | None = None
    ids: tuple[int, ...] = ()

    @property
    def is_empty(self) -> bool:
        return not (self.text or self.reasoning or self.calls)

    def after(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """Return `messages` with the text as the last one, which is to be gone on with; what the
        caller had begun himself is its beginning."""
        part = TextPart(self.text)
        last = messages[-1] if messages else None
        if last is not None and last.role == "assistant" and not last.tool_calls:
            return (*messages[:-1], msgspec.structs.replace(last, parts=(*last.parts, part)))
        return (*messages, Message("assistant", (part,), reasoning=self.reasoning or None))


class GenerateRequest(msgspec.Struct, frozen=True):
    """One generation. Either `messages` (a chat) or `prompt` is given.

    A `raw` prompt is continued as it stands; any other prompt goes through the model's template.
    `tool_choice` is auto, none, required or the name of a tool.
    `think` asks for (or forbids) reasoning, `keep_alive` is seconds (negative: for ever).
    `caller` is whose request it is: callers take turns where they wait, and share no prompts.

    `continue_on_failure`: an answer that breaks goes on with another model, or does not; None: as
    the rule of the name has it. `said` is what was said then, `tells_ids` asks for the tokens of
    deltas. `truncate` allows a provider that cuts prompts to do so, and to tell it; None: as the
    provider is set. `is_whole`: the answer is wanted in one piece, and deltas of text that come
    together may be one.
    """

    id: str
    model: str
    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    raw: bool = False
    options: Options = NO_OPTIONS
    tools: tuple[Tool, ...] = ()
    tool_choice: str | None = None
    parallel_tool_calls: bool = True
    response_format: ResponseFormat | None = None
    think: bool | str | None = None
    keep_alive_s: float | None = None
    caller: str = ""
    continue_on_failure: bool | None = None
    said: Said | None = None
    tells_ids: bool = False
    truncate: bool | None = None
    is_whole: bool = False

    @property
    def has_images(self) -> bool:
        for message in self.messages:
            for part in message.parts:
                if type(part) is ImagePart:
                    return True
        return False

    @property
    def max_tokens_left(self) -> int | None:
        """How many tokens the answer may still have; None: nobody says."""
        most = self.options.max_tokens
        return most if most is None or self.said is None else max(1, most - self.said.tokens)

    @property
    def texts(self) -> Iterator[str]:
        """Everything that the caller wrote, but for images and tools."""
        yield self.prompt or ""
        for message in self.messages:
            yield message.text
            yield message.reasoning or ""
            for call in message.tool_calls:
                yield call.arguments

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
