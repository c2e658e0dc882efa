"""Turns a request into token ids: chat template, and user text that stays text."""

import re
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from gateway.core.dialects import read_dialect
from gateway.core.errors import InvalidRequest, UnsupportedCapability
from gateway.core.messages import GenerateRequest, Message, Said
from gateway.engine.text.chat import describe_message, describe_tools, template_settings

_TAIL_TOKENS = 16
"""Where a template that begins the reasoning itself must have done so."""
_LEAD = "\n"
"""Text that stands apart from what follows it in nearly every tokenizer."""


class Prompt(msgspec.Struct, frozen=True):
    """The ids of a whole prompt, and the tensors that go with them when it has images."""

    ids: list[int]
    inputs: Mapping[str, Any] | None = None

    def extended(self, count: int) -> "Prompt":
        """Return a prompt whose tensors by token reach `count` tokens of text further; its ids are
        as they were."""
        if not (count and self.inputs):
            return self
        from torch.nn.functional import pad

        by_token = (1, len(self.ids))
        inputs = {
            name: pad(value, (0, count)) if value.shape[:2] == by_token else value
            for name, value in self.inputs.items()
        }
        return Prompt(self.ids, inputs)


class Piece(NamedTuple):
    """A part of a rendered prompt; `is_literal`: a user's text that spells a control token."""

    text: str
    is_literal: bool


class PromptEncoder:
    """Encodes with one tokenizer (a transformers tokenizer). Threads may share it."""

    def __init__(
        self, tokenizer: Any, *, template: str | None = None, in_parts: bool = False
    ) -> None:
        """`template` is used instead of the tokenizer's own; one that takes messages `in_parts`
        gets a list of texts and images, another the text alone."""
        self._tokenizer = tokenizer
        self._template = template
        self._in_parts = in_parts
        # A tokenizer call may reset its padding, which the Rust side refuses while another reads.
        self._lock = threading.Lock()
        specials = sorted(_control_strings(tokenizer), key=len, reverse=True)
        self._specials = re.compile("|".join(map(re.escape, specials))) if specials else None
        self.dialect = read_dialect([template] if template else _templates(tokenizer))
        self.byte_tokens = _byte_tokens(tokenizer)
        self._hidden = _hidden_ids(tokenizer, ())
        self._hidden_in_chat = _hidden_ids(tokenizer, self.dialect.marks)

    @property
    def can_chat(self) -> bool:
        return bool(self._template or getattr(self._tokenizer, "chat_template", None))

    def is_raw(self, request: GenerateRequest) -> bool:
        """Tell whether the prompt is continued as it stands: what comes is text and no more."""
        return request.prompt is not None and (request.raw or not self.can_chat)

    def encode(self, request: GenerateRequest) -> list[int]:
        """Return the ids of the whole prompt; see `prompt`."""
        return self.prompt(request).ids

    def prompt(self, request: GenerateRequest) -> Prompt:
        """Return the whole prompt.

        A raw prompt is taken as it stands, control tokens included. In a chat, text that spells a
        control token is encoded as the text that it is.

        Raises UnsupportedCapability when a chat is asked of a model without a template, and
        InvalidRequest when the template refuses the messages.
        """
        if self.is_raw(request):
            return Prompt(self._ids(request.prompt or "", special=True))
        return self._encode_chat(request)

    def encode_said(self, said: Said, prompt: Sequence[int], *, is_raw: bool) -> list[int]:
        """Return the ids of an answer's beginning that follows `prompt`; see `take_up` in speech.

        What was thought before it stands between the model's own marks.
        """
        form = self.dialect.reasoning
        if is_raw or form is None:
            return self._ids_within(said.text)
        is_thinking = self.begins_reasoning(prompt)
        if not (is_thinking or said.reasoning):
            return self._ids_within(said.text)
        lead = [] if is_thinking else self._ids(form.begin, special=False)
        return [
            *lead,
            *self._ids_within(f"\n{said.reasoning}\n"),
            *self._ids(form.end, special=False),
            *self._ids_within(f"\n\n{said.text}"),
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, control tokens left out."""
        return self._decode(ids, self._hidden)

    def decode_chat(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, with the control tokens that mark calls and reasoning."""
        return self._decode(ids, self._hidden_in_chat)

    def spell(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, every control token included."""
        return self._decode(ids, frozenset())

    def begins_reasoning(self, prompt: Sequence[int]) -> bool:
        """Tell whether the prompt ends where the model's reasoning begins."""
        mark = self.dialect.reasoning.begin if self.dialect.reasoning else None
        return mark is not None and self.spell(prompt[-_TAIL_TOKENS:]).rstrip().endswith(mark)

    def _decode(self, ids: Sequence[int], hidden: frozenset[int]) -> str:
        shown = [token for token in ids if token not in hidden]
        text = self._tokenizer.decode(
            shown, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return str(text)

    def _encode_chat(self, request: GenerateRequest) -> Prompt:
        if request.has_images:
            raise UnsupportedCapability("This model takes no images.", param="messages")
        ids: list[int] = []
        for text, is_literal in self._pieces(request):
            ids += self._literal_ids(text) if is_literal else self._ids(text, special=False)
        return Prompt(ids)

    def _pieces(self, request: GenerateRequest) -> list[Piece]:
        """Return the prompt that the template makes of the messages."""
        if not self.can_chat:
            raise UnsupportedCapability(
                "This model has no chat template.",
                hint="Use /v1/completions, which continues a text.",
                param="messages",
            )
        guard = _Guard(self._specials)
        return list(guard.split(self._render(request, guard)))

    def _render(self, request: GenerateRequest, guard: "_Guard") -> str:
        import jinja2

        messages = request.messages or (Message.user(request.prompt or ""),)
        id_length = next((form.id_length for form in self.dialect.calls), None)
        described = [
            describe_message(message, messages, id_length, in_parts=self._in_parts)
            for message in messages
        ]
        tools = describe_tools(request.tools) if request.tool_choice != "none" else None
        continued = messages[-1].role == "assistant" and not messages[-1].tool_calls
        covered: list[dict[str, Any]] = guard.cover(described)
        settings = {
            "tools": guard.cover(tools),
            "tokenize": False,
            "add_generation_prompt": not continued,
            "continue_final_message": continued,
            **template_settings(request.think),
            **({"chat_template": self._template} if self._template else {}),
        }
        try:
            try:
                return str(self._tokenizer.apply_chat_template(covered, **settings))
            except TypeError:  # some templates join the arguments of calls as the text they were
                covered = guard.cover(
                    [
                        describe_message(
                            m, messages, id_length, as_text=True, in_parts=self._in_parts
                        )
                        for m in messages
                    ]
                )
                return str(self._tokenizer.apply_chat_template(covered, **settings))
        except (jinja2.TemplateError, ValueError, TypeError, LookupError, ArithmeticError) as error:
            raise InvalidRequest(
                f"The model's chat template refused the messages: {error}", param="messages"
            ) from None

    def _ids(self, text: str, *, special: bool) -> list[int]:
        with self._lock:
            return list(self._tokenizer(text, add_special_tokens=special)["input_ids"])

    def _ids_within(self, text: str) -> list[int]:
        """Encode text in the middle of a longer one, the control strings in it as text."""
        pieces = self._specials.split(text) if self._specials else [text]
        spelled = [*(self._specials.findall(text) if self._specials else ()), ""]
        ids: list[int] = []
        for piece, control in zip(pieces, spelled, strict=True):
            ids += self._unled_ids(piece) if piece else []
            ids += self._literal_ids(control) if control else []
        return ids

    def _unled_ids(self, text: str) -> list[int]:
        """Encode text without the space that some tokenizers set before every text."""
        lead, led = self._ids(_LEAD, special=False), self._ids(_LEAD + text, special=False)
        is_apart = led[: len(lead)] == lead
        return led[len(lead) :] if is_apart else self._ids(text, special=False)

    def _literal_ids(self, text: str) -> list[int]:
        """Encode text that spells a control token: cut in two, neither part is one any more."""
        ids = self._ids(text[:1], special=False)
        rest = text[1:]
        if rest and self._specials and (match := self._specials.search(rest)):
            before, after = rest[: match.start()], rest[match.end() :]
            parts = (self._ids(before, special=False), self._literal_ids(match[0]))
            return [*ids, *parts[0], *parts[1], *self._ids(after, special=False)]
        return ids + (self._ids(rest, special=False) if rest else [])


class _Guard:
    """Covers control strings in user text with marks that no template and no user can guess."""

    def __init__(self, specials: re.Pattern[str] | None) -> None:
        self._specials = specials
        self._literals: list[str] = []
        self._nonce = secrets.token_hex(8)

    def cover(self, value: Any) -> Any:
        """Return JSON with every text in it covered, the keys of its objects included."""
        match value:
            case str():
                return self._cover(value)
            case list():
                return [self.cover(item) for item in value]
            case dict():
                return {self._cover(key): self.cover(item) for key, item in value.items()}
            case _:
                return value

    def split(self, rendered: str) -> Iterator[Piece]:
        """Yield the pieces of the rendered prompt; the literal ones are covered user text."""
        for index, piece in enumerate(re.split(rf"\[{self._nonce}:(\d+)\]", rendered)):
            if index % 2:
                yield Piece(self._literals[int(piece)], True)
            elif piece:
                yield Piece(piece, False)

    def _cover(self, text: str) -> str:
        if self._specials is None:
            return text
        return self._specials.sub(self._mark, text)

    def _mark(self, match: re.Match[str]) -> str:
        self._literals.append(match[0])
        return f"[{self._nonce}:{len(self._literals) - 1}]"


def _byte_tokens(tokenizer: Any) -> dict[int, int]:
    """Return the tokens that stand for one byte each, and which; none without a byte fallback."""
    to_id = getattr(tokenizer, "convert_tokens_to_ids", None)
    if to_id is None:
        return {}
    ids = {to_id(f"<0x{byte:02X}>"): byte for byte in range(256)}
    letter = next((token for token, byte in ids.items() if byte == ord("A")), None)
    # Where there is no such token, all of them are the unknown one; and some only look like it.
    is_fallback = len(ids) == 256 and None not in ids
    return ids if is_fallback and tokenizer.decode([letter]) == "A" else {}


def _control_strings(tokenizer: Any) -> set[str]:
    """Return every string that the tokenizer reads as one token of its own, not as text."""
    added = {str(token) for token in getattr(tokenizer, "added_tokens_decoder", {}).values()}
    return {text for text in added | set(tokenizer.all_special_tokens) if len(text) > 1}


def _hidden_ids(tokenizer: Any, marks: Sequence[str]) -> frozenset[int]:
    """Return the special tokens that an answer is shown without: all but those in `marks`."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).items()
    special = {int(token_id): str(token) for token_id, token in added if token.special}
    named = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
    special |= {int(token_id): str(token) for token_id, token in named}
    return frozenset(
        token_id for token_id, text in special.items() if not any(text in mark for mark in marks)
    )


def _templates(tokenizer: Any) -> list[str]:
    template = getattr(tokenizer, "chat_template", None) or ""
    return list(template.values()) if isinstance(template, dict) else [template]
