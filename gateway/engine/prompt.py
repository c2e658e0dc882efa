"""Turns a request into token ids: chat template, and user text that stays text."""

import re
import secrets
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from gateway.core.errors import InvalidRequest, UnsupportedCapability
from gateway.core.messages import GenerateRequest, Message


class PromptEncoder:
    """Encodes with one tokenizer (a transformers tokenizer). Threads may share it."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # A tokenizer call may reset its padding, which the Rust side refuses while another reads.
        self._lock = threading.Lock()
        specials = sorted(_control_strings(tokenizer), key=len, reverse=True)
        self._specials = re.compile("|".join(map(re.escape, specials))) if specials else None

    @property
    def can_chat(self) -> bool:
        return bool(getattr(self._tokenizer, "chat_template", None))

    def encode(self, request: GenerateRequest) -> list[int]:
        """Return the ids of the whole prompt.

        A raw prompt is taken as it stands, control tokens included. In a chat, text that spells a
        control token is encoded as the text that it is.

        Raises UnsupportedCapability when a chat is asked of a model without a template, and
        InvalidRequest when the template refuses the messages.
        """
        if request.prompt is not None and (request.raw or not self.can_chat):
            return self._ids(request.prompt, special=True)
        messages = request.messages or (Message.user(request.prompt or ""),)
        return self._encode_chat(messages)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, control tokens left out."""
        text = self._tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(text)

    def _encode_chat(self, messages: Sequence[Message]) -> list[int]:
        if not self.can_chat:
            raise UnsupportedCapability(
                "This model has no chat template.",
                hint="Use /v1/completions, which continues a text.",
                param="messages",
            )
        guard = _Guard(self._specials)
        rendered = self._render([guard.cover(message) for message in messages])
        ids: list[int] = []
        for text, is_literal in guard.split(rendered):
            ids += self._literal_ids(text) if is_literal else self._ids(text, special=False)
        return ids

    def _render(self, messages: list[dict[str, Any]]) -> str:
        import jinja2

        continued = messages[-1]["role"] == "assistant"
        try:
            rendered = self._tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=not continued,
                continue_final_message=continued,
            )
        except (jinja2.TemplateError, ValueError, TypeError, LookupError, ArithmeticError) as error:
            raise InvalidRequest(
                f"The model's chat template refused the messages: {error}", param="messages"
            ) from None
        return str(rendered)

    def _ids(self, text: str, *, special: bool) -> list[int]:
        with self._lock:
            return list(self._tokenizer(text, add_special_tokens=special)["input_ids"])

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

    def cover(self, message: Message) -> dict[str, Any]:
        covered: dict[str, Any] = {"role": message.role, "content": self._cover(message.text)}
        if message.reasoning:
            covered["reasoning_content"] = self._cover(message.reasoning)
        return covered

    def split(self, rendered: str) -> Iterator[tuple[str, bool]]:
        """Yield the pieces of the rendered prompt, and whether each is covered user text."""
        for index, piece in enumerate(re.split(rf"\[{self._nonce}:(\d+)\]", rendered)):
            if index % 2:
                yield self._literals[int(piece)], True
            elif piece:
                yield piece, False

    def _cover(self, text: str) -> str:
        if self._specials is None:
            return text
        return self._specials.sub(self._mark, text)

    def _mark(self, match: re.Match[str]) -> str:
        self._literals.append(match[0])
        return f"[{self._nonce}:{len(self._literals) - 1}]"


def _control_strings(tokenizer: Any) -> set[str]:
    """Return every string that the tokenizer reads as one token of its own, not as text."""
    added = {str(token) for token in getattr(tokenizer, "added_tokens_decoder", {}).values()}
    return {text for text in added | set(tokenizer.all_special_tokens) if len(text) > 1}
