"""The tokenizer and the chat template inside a GGUF file, in the form that PromptEncoder uses.

It has the methods of a transformers tokenizer that the engine calls, so prompts are made (and
user text is kept text) by the same code for every format.
"""

import ctypes
from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import AddedToken

from gateway.core.errors import InvalidRequest
from gateway.engine.llama_cpp.model import LlamaModel

PIECE_BYTES = 256


class LlamaTokenizer:
    """Encodes and decodes with a model's vocabulary, which it keeps in memory."""

    def __init__(self, model: LlamaModel, chat_template: str | None) -> None:
        self._model = model
        self.chat_template = chat_template
        ids = range(model.vocabulary_size)
        self.eos_ids = frozenset(
            token for token in ids if model.api.llama_vocab_is_eog(model.vocab, token)
        )
        self.added_tokens_decoder = {
            token: AddedToken(self._text(token), special=is_control)
            for token, is_control in self._special_ids(ids)
        }
        special = {id: str(each) for id, each in self.added_tokens_decoder.items() if each.special}
        self.all_special_ids = list(special)
        self.all_special_tokens = list(special.values())

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        """Return the ids; text that spells a control token is that token."""
        return {"input_ids": self._encode(text.encode(), add_special_tokens)}

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False, **_: Any) -> str:
        """Return the text; bytes that are no character become the replacement character."""
        pieces = [self._piece(token, not skip_special_tokens) for token in ids]
        return b"".join(pieces).decode(errors="replace")

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of one token, which may be a part of a character."""
        return self._piece(token, True)

    def encode_bytes(self, text: bytes) -> list[int]:
        """Return the ids of bytes that need not be whole characters."""
        return self._encode(text, False)

    def apply_chat_template(self, messages: Sequence[Any], **options: Any) -> str:
        """Return the prompt as text, rendered as transformers renders it: in a sandbox."""
        from transformers.utils.chat_template_utils import render_jinja_template

        api, vocab = self._model.api, self._model.vocab
        options.pop("tokenize", None)
        rendered, _ = render_jinja_template(
            [list(messages)],
            chat_template=self.chat_template,
            bos_token=self._text(api.llama_vocab_bos(vocab)),
            eos_token=self._text(api.llama_vocab_eos(vocab)),
            **options,
        )
        return str(rendered[0])

    def _encode(self, text: bytes, add_special: bool) -> list[int]:
        # A token has at least one byte; a few more are set before and after.
        room = len(text) + 16
        tokens = (ctypes.c_int32 * room)()
        count = self._model.api.llama_tokenize(
            self._model.vocab, text, len(text), tokens, room, add_special, True
        )
        if count < 0:
            raise InvalidRequest("The model's tokenizer does not take this text.")
        return list(tokens[:count])

    def _piece(self, token: int, special: bool) -> bytes:
        room = PIECE_BYTES
        while True:
            piece = ctypes.create_string_buffer(room)
            count = self._model.api.llama_token_to_piece(
                self._model.vocab, token, piece, room, 0, special
            )
            if count >= 0:
                return piece.raw[:count]
            room = -count

    def _text(self, token: int) -> str:
        """Return how the vocabulary spells a token; empty where the model has no such token."""
        if token < 0:
            return ""
        text: bytes = self._model.api.llama_vocab_get_text(self._model.vocab, token)
        return text.decode(errors="replace")

    def _special_ids(self, ids: Iterable[int]) -> list[tuple[int, bool]]:
        """Return the tokens that llama.cpp finds in text before it splits the text, and of each
        whether it controls the model: others are a part of what it says."""
        api, vocab = self._model.api, self._model.vocab
        control = api.LLAMA_TOKEN_ATTR_CONTROL | api.LLAMA_TOKEN_ATTR_UNKNOWN
        special = control | api.LLAMA_TOKEN_ATTR_USER_DEFINED
        attributes = ((token, api.llama_vocab_get_attr(vocab, token)) for token in ids)
        return [(token, bool(attr & control)) for token, attr in attributes if attr & special]
