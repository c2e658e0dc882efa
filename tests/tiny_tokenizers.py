"""Tokenizers whose tokens are the 256 bytes and a model family's control tokens, in memory."""

from collections.abc import Sequence
from typing import Any

END = "<|im_end|>"


def byte_tokenizer(
    *, special: Sequence[str] = (), added: Sequence[str] = (), template: str | None = None
) -> Any:
    """Return a tokenizer; `special` tokens are dropped from plain text, `added` ones are not."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([END, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, pad_token=END)
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in added])
    tokenizer.chat_template = template
    return tokenizer
