"""A model's tokens as bytes: what grammars and log probabilities need. Built when first asked."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from copy import copy
from typing import TYPE_CHECKING, Any

from gateway.core.errors import InvalidRequest, UnsupportedCapability
from gateway.engine.text.constraint import Constraint

if TYPE_CHECKING:
    from llguidance import LLTokenizer

# Smaller than the library's own: what one step costs holds up all other sequences. At the
# library's speed (14 000 units of fuel, 20 000 items a millisecond) these are some milliseconds.
_STEP_FUEL = 50_000
_STEP_ITEMS = 10_000
_LEXER_STATES = 50_000
_MAX_REASON = 300
# Where in the grammar an error is, and its lines: the caller did not write them.
_PLACE = re.compile(r"^at \d+\(\d+\): |^ *\d+ \| .*$|^ +\^$|<non-verbose/>", re.MULTILINE)


class Vocabulary:
    """The tokens of one tokenizer; `size` is that of the model's logits. Threads may share it.

    The wrapper of a large vocabulary takes half a second to build: call from a thread.
    """

    def __init__(self, tokenizer: Any, size: int, eos_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._size = size
        self._eos_ids = sorted(eos for eos in eos_ids if eos < size)
        self._lock = threading.Lock()
        self._wrapper: LLTokenizer | None = None

    @property
    def marks(self) -> Mapping[str, int]:
        """The tokens that stand for themselves, not for text, by what they are written as."""
        added = getattr(self._tokenizer, "added_tokens_decoder", {}).items()
        return {str(token): int(token_id) for token_id, token in added}

    def compile(self, grammar: str) -> Constraint:
        """Return the constraint that a grammar (llguidance's form of Lark) makes.

        Raises InvalidRequest with the reason when the grammar is wrong or too large.
        """
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(
            step_lexer_fuel=_STEP_FUEL,
            step_max_items=_STEP_ITEMS,
            max_lexer_states=_LEXER_STATES,
            verbose_errors=False,
        )
        matcher = LLMatcher(self._tokens(), grammar, log_level=0, limits=limits)
        if reason := matcher.get_error():
            raise InvalidRequest(_shorten(reason))
        return Constraint(matcher, self._size)

    def bytes_of(self, token: int) -> bytes:
        """Return the bytes of one token, which may be a part of a character."""
        own = getattr(self._tokenizer, "token_bytes", None)
        return bytes(own(token)) if own else self._tokens().decode_bytes([token])

    def _tokens(self) -> LLTokenizer:
        with self._lock:
            if self._wrapper is None:
                self._wrapper = self._wrap()
            return self._wrapper

    def _wrap(self) -> LLTokenizer:
        from llguidance import LLTokenizer, TokenizerWrapper

        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        try:
            if not self._eos_ids:
                raise ValueError("no token ends an answer")
            if hasattr(self._tokenizer, "token_bytes"):
                spelled = _Spelled(self._tokenizer, self._size, self._eos_ids)
                return LLTokenizer(TokenizerWrapper(spelled), eos_token=self._eos_ids)
            if backend is None:
                raise ValueError("it has no tokenizer.json")
            plain = copy(backend)
            plain.no_padding()
            plain.no_truncation()
            return LLTokenizer(plain.to_str(), n_vocab=self._size, eos_token=self._eos_ids)
        except ValueError as error:
            raise UnsupportedCapability(
                f"The tokenizer of this model cannot be read token by token: {error}"
            ) from None


class _Spelled:
    """A tokenizer that tells the bytes of its tokens, in the form that llguidance takes."""

    def __init__(self, tokenizer: Any, size: int, eos_ids: list[int]) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = eos_ids[0]
        self.bos_token_id = None
        self.tokens = [tokenizer.token_bytes(token) for token in range(size)]
        self.special_token_ids = tokenizer.all_special_ids

    def __call__(self, text: bytes) -> list[int]:
        return list(self._tokenizer.encode_bytes(text))


def _shorten(reason: str) -> str:
    return " ".join(_PLACE.sub("", reason).split())[:_MAX_REASON]
