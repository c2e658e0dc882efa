"""Attention of a flat batch over a SlotCache, registered with transformers under a name of its own.

transformers builds no mask for a name that it does not know, so each layer asks the view for the
mask that it needs: full, or a sliding window.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.engine.decoding.varlen import attend_varlen, fits

if TYPE_CHECKING:
    from torch import Tensor

    from gateway.engine.decoding.view import Run, View

NAME = "gateway_slots"


class UnsupportedAttention(Exception):
    """A layer asks for something that this attention cannot do; the model runs unbatched."""


def register() -> None:
    """Make the name known to transformers; harmless when it is already."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attend_for_transformers)


def _attend_for_transformers(
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
    """`query` is [1, heads, tokens, size]; `key` and `value` are all that the layer holds."""
    if view is None or s_aux is not None or position_bias is not None:
        raise UnsupportedAttention
    if sliding_window is None and _slides(module):
        raise UnsupportedAttention  # it is told by a mask alone, which is not made here
    output = attend(query[0].transpose(0, 1), key, value, view, sliding_window, scaling, softcap)
    return output[None], None


def _slides(layer: Any) -> bool:
    """Tell whether the config gives this layer a window."""
    config = layer.config
    if getattr(config, "sliding_window", None) is None:
        return False
    kinds = getattr(config, "layer_types", None)
    return kinds is None or kinds[layer.layer_idx] == "sliding_attention"


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    view: View,
    window: int | None = None,
    scaling: float | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Return the output for each token of the flat batch, of shape [tokens, heads, size].

    `query` is [tokens, heads, size]; `keys` and `values` are a layer's, as SlotCache returns them
    with the new tokens already in it. `window` is how far back a sliding layer looks; `softcap` is
    what scores come near to but do not pass (Gemma 2).
    """
    import torch

    count = len(view.single_rows)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if view.kernel is not None and fits(keys.shape[3], values.shape[3], softcap):
        return _attend_ragged(query, keys, values, view, window, scale)
    ways = window, scale, softcap
    parts = [_decode(query[:count], keys, values, view, *ways)] if count else []
    parts += [_prefill(query, keys, values, view, run, *ways) for run in view.chunks]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _attend_ragged(
    query: Tensor, keys: Tensor, values: Tensor, view: View, window: int | None, scale: float
) -> Tensor:
    """One call for all that decode and one for all chunks, each row read as far as it is long."""
    import torch

    assert view.kernel is not None
    count, capacity = len(view.single_rows), keys.shape[2]
    ways = window, scale, view.kernel
    parts = []
    if count:
        parts.append(attend_varlen(query[:count], keys, values, view.single_slots(capacity), *ways))
    if view.chunks:
        parts.append(attend_varlen(query[count:], keys, values, view.chunk_slots(capacity), *ways))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _decode(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    view: View,
    window: int | None,
    scale: float,
    softcap: float | None,
) -> Tensor:
    """One new token a row: the heads of a group share their keys, so none need be repeated."""
    count, heads, size = query.shape
    grouped = query.reshape(count, keys.shape[1], heads // keys.shape[1], size)
    output = grouped.new_empty((*grouped.shape[:3], values.shape[3]))
    if view.span:
        asking = grouped
        if not view.is_dense:
            asking = grouped.new_zeros((view.span, *grouped.shape[1:]))
            asking[view.rows] = grouped
        common = slice(0, view.span), slice(None), slice(0, view.width)
        mask = view.single_mask(window, query)
        answer = _one_token(asking, keys[common], values[common], mask, scale, softcap)
        output = answer if view.is_dense else answer[view.rows]
    for index, row, length in view.apart:
        start = 0 if window is None else max(0, length - window)
        own = slice(row, row + 1), slice(None), slice(start, length)
        single = grouped[index : index + 1]
        output[index] = _one_token(single, keys[own], values[own], None, scale, softcap)
    return output.reshape(count, heads, values.shape[3])


def _one_token(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    scale: float,
    softcap: float | None,
) -> Tensor:
    """Return the output of one token of each row, of shape [rows, heads, group, size].

    torch's fused attention is made for many queries; with one a row, plain products over keys
    whose tokens lie side by side are about twice as fast on a CPU. See SlotCache for the layout.
    """
    from torch.nn.functional import scaled_dot_product_attention

    if keys.stride(-1) == 1 and softcap is None:
        return scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scale)
    return _by_products(query, keys, values, mask, scale, softcap)


def _by_products(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    scale: float,
    softcap: float | None,
) -> Tensor:
    import torch

    scores = torch.matmul(query, keys.transpose(-1, -2)).float() * scale
    if softcap is not None:
        scores = torch.tanh_(scores.div_(softcap)).mul_(softcap)
    if mask is not None:
        scores += mask
    return torch.matmul(torch.softmax(scores, -1).to(query.dtype), values)


def _prefill(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    view: View,
    run: Run,
    window: int | None,
    scale: float,
    softcap: float | None,
) -> Tensor:
    from torch.nn.functional import scaled_dot_product_attention

    asking = query[run.first : run.first + run.tokens].transpose(0, 1)
    groups = asking.shape[0] // keys.shape[1]
    mask = view.chunk_mask(run, window, query, always=softcap is not None)
    known = [
        tensor[run.row, :, : run.end].repeat_interleave(groups, dim=0) for tensor in (keys, values)
    ]
    if softcap is not None:
        return _by_products(asking, known[0], known[1], mask, scale, softcap).transpose(0, 1)
    output: Tensor = scaled_dot_product_attention(
        asking[None],
        known[0][None],
        known[1][None],
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
    )[0]
    return output.transpose(0, 1)
