"""Attention over a SlotCache, registered with transformers under a name of its own.

transformers builds no mask for a name that it does not know, so each layer asks the view for the
mask that it needs: full, or a sliding window.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from gateway.engine.kv_cache import View

NAME = "gateway_slots"


class UnsupportedAttention(Exception):
    """A layer asks for something that this attention cannot do; the model runs unbatched."""


def register() -> None:
    """Make the name known to transformers; harmless when it is already."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    view: View | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Return the attention output, of shape [rows, tokens, heads, size].

    `query` is [rows, heads, tokens, size]; `key` and `value` are all that the rows hold.
    """
    from torch.nn.functional import scaled_dot_product_attention

    if view is None or softcap is not None or s_aux is not None or position_bias is not None:
        raise UnsupportedAttention
    mask = view.mask(sliding_window)
    rows, heads, tokens, size = query.shape
    groups = heads // key.shape[1]
    if tokens == 1:
        # One new token a row: the heads of a group share their keys, so none need be repeated.
        packed = query.reshape(rows, key.shape[1], groups, size)
        output = scaled_dot_product_attention(packed, key, value, attn_mask=mask, scale=scaling)
        output = output.reshape(rows, heads, tokens, value.shape[-1])
    else:
        output = scaled_dot_product_attention(
            query,
            key.repeat_interleave(groups, dim=1) if groups > 1 else key,
            value.repeat_interleave(groups, dim=1) if groups > 1 else value,
            attn_mask=mask,
            is_causal=mask is None,
            scale=scaling,
        )
    return output.transpose(1, 2).contiguous(), None
