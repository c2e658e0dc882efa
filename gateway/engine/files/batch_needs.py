"""What a batch of an embedder takes while it is computed, told from its config. Pure.

Factors were measured with bert, xlm-roberta, modernbert, qwen3, mpnet, t5 and deberta-v2, from 512
to 4,000 tokens: a process grew by 0.4 to 1.0 of what is told here.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

EMBEDDER_TOKENS = 512
"""What an embedder is given at once on a CPU: more makes no batch faster (6 layers of 384, 2
cores), only others wait longer."""
_MASK_BYTES, _WINDOW_BYTES = 4, 12
"""For each pair of tokens, however many heads attend: masks, and those of a window besides."""


class BatchNeeds(msgspec.Struct, frozen=True):
    """What a token of a batch takes, padding counted, and besides for each that it may look at."""

    token_bytes: int
    pair_bytes: int

    def bytes(self, tokens: int, longest: int) -> int:
        """Return what so many tokens take, in rows as long as the longest."""
        return tokens * (self.token_bytes + longest * self.pair_bytes)

    def usual_bytes(self, tokens: int, most: int) -> int:
        """Return what is held for a model as long as it is loaded: for so many tokens at once, in
        rows of `EMBEDDER_TOKENS`, or of `most` if it takes no more. Longer inputs need more."""
        return self.bytes(tokens, min(most, EMBEDDER_TOKENS))


def read_batch_needs(
    config: Mapping[str, Any], width: int, *, is_eager: bool = False
) -> BatchNeeds:
    """Return what a model computes in, in numbers of `width` bytes: what flows between its layers,
    the widest layer's input and output, and its attention's scores.

    `is_eager`: attention is computed in steps, and not in one operator without scores.
    """
    hidden = _read_size(config, "hidden_size", "dim", "d_model")
    inner = _read_size(config, "intermediate_size", "hidden_dim", "d_ff") or 4 * hidden
    heads = _read_size(config, "num_attention_heads", "n_heads", "num_heads") or 1
    has_window = config.get("local_attention") or config.get("sliding_window")
    masks = _MASK_BYTES + (_WINDOW_BYTES if has_window else 0)
    scores = 4 * heads * _score_copies(config, is_eager)
    return BatchNeeds(width * (16 * hidden + 4 * inner), masks + scores)


def _read_size(config: Mapping[str, Any], *names: str) -> int:
    """Return what the first of the names says that says a number, or the most of one a layer; 0
    where none does: files may say anything."""
    for name in names:
        said = config.get(name)
        sizes = [each for each in (said if isinstance(said, list) else [said]) if type(each) is int]
        if sizes:
            return max(sizes)
    return 0


def _score_copies(config: Mapping[str, Any], is_eager: bool) -> int:
    """Return how often there is a number for each head and pair of tokens at once."""
    if config.get("pos_att_type"):  # DeBERTa: contents and places attend to each other
        return 9
    has_bias = bool(config.get("relative_attention_num_buckets"))  # T5, MPNet
    return 5 if is_eager or has_bias else 0
