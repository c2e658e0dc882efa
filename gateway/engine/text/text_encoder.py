"""Turns the inputs of an embedding request into token ids, within the model's length."""

import threading
from collections.abc import Sequence
from typing import Any

from gateway.core.embeddings import EmbedRequest
from gateway.core.errors import ContextLengthExceeded, InvalidRequest


class TextEncoder:
    """Encodes with one tokenizer (a transformers tokenizer). Threads may share it.

    A text gets the control tokens that the model was trained with around it; text that spells one
    stays text. Token ids are taken as they are.
    """

    def __init__(
        self, tokenizer: Any, *, max_tokens: int, vocabulary_size: int, lower_case: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._vocabulary_size = vocabulary_size
        self._lower_case = lower_case
        # A call may reset the tokenizer's truncation, which its Rust side refuses in use.
        self._lock = threading.Lock()

    def encode(self, request: EmbedRequest) -> list[list[int]]:
        """Return the ids of each input.

        Raises ContextLengthExceeded for an input that is too long, unless it may be cut, and
        InvalidRequest for one without tokens or with ids that the model does not have.
        """
        texts = [item for item in request.inputs if isinstance(item, str)]
        encoded = iter(self._ids(texts, cut=request.truncate))
        several = len(request.inputs) > 1
        return [
            self._checked(
                next(encoded) if isinstance(item, str) else list(item),
                f"input[{index}]" if several else "input",
                request.truncate,
            )
            for index, item in enumerate(request.inputs)
        ]

    def _ids(self, texts: Sequence[str], *, cut: bool) -> list[list[int]]:
        if not texts:
            return []
        if self._lower_case:
            texts = [text.lower() for text in texts]
        options = {"truncation": True, "max_length": self._max_tokens} if cut else {}
        with self._lock:
            # Truncated by the tokenizer, so that the control token at the end stays there.
            encoded = self._tokenizer(
                list(texts), split_special_tokens=True, padding=False, **options
            )
        return [list(ids) for ids in encoded["input_ids"]]

    def _checked(self, ids: list[int], param: str, truncate: bool) -> list[int]:
        if not ids:
            raise InvalidRequest(f"'{param}' has no tokens.", param=param)
        if max(ids) >= self._vocabulary_size:
            raise InvalidRequest(
                f"'{param}' has token {max(ids)}; this model's tokens end at "
                f"{self._vocabulary_size - 1}.",
                hint="Token ids must be the model's own: send text, which LangChain does with "
                "check_embedding_ctx_length=False.",
                param=param,
            )
        if len(ids) > self._max_tokens and not truncate:
            raise ContextLengthExceeded(
                f"'{param}' has {len(ids)} tokens; this model takes {self._max_tokens}.",
                hint='Send shorter texts, or "truncate": true to /api/v1/embed.',
                param=param,
            )
        return ids[: self._max_tokens]
