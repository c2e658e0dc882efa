"""What torch documents of `torch.nn.attention.varlen.varlen_attn`, in plain products: it runs on
any device. Of `window_size` (left, right) it knows what a causal model asks for."""

from typing import Any

import torch


def varlen_attn(
    query: Any,
    key: Any,
    value: Any,
    cu_seq_q: Any,
    cu_seq_k: Any,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
    seqused_k: Any,
) -> Any:
    """Attend; raises AssertionError for what the kernel refuses or would read beyond."""
    for numbers in (cu_seq_q, cu_seq_k, seqused_k):
        assert numbers.dtype == torch.int32
    assert enable_gqa or query.shape[1] == key.shape[1]
    assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
    assert (len(cu_seq_q), len(cu_seq_k)) == (len(seqused_k) + 1,) * 2
    output = torch.empty(*query.shape[:2], value.shape[2], dtype=query.dtype)
    starts, places, lengths = (part.tolist() for part in (cu_seq_q, cu_seq_k, seqused_k))
    assert starts[0] == 0 and starts[-1] == len(query)
    for index, length in enumerate(lengths):
        start, end, place = starts[index], starts[index + 1], places[index]
        assert 0 < end - start <= max_q and end - start <= length <= max_k
        assert place + length <= places[index + 1] <= len(key)
        output[start:end] = _attend(
            query[start:end],
            key[place : place + length],
            value[place : place + length],
            scale,
            window_size,
        )
    return output


def _attend(query: Any, key: Any, value: Any, scale: float, window: tuple[int, int]) -> Any:
    groups = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(groups, dim=1).transpose(0, 1) for part in (key, value))
    # Aligned at the end: the last token that asks is the last that is seen.
    asking = torch.arange(key.shape[1] - len(query), key.shape[1])[:, None]
    asked = torch.arange(key.shape[1])
    seen = torch.ones(len(query), key.shape[1], dtype=torch.bool)
    if window[0] >= 0:
        seen &= asked >= asking - window[0]
    if window[1] >= 0:
        seen &= asked <= asking + window[1]
    scores = (query.transpose(0, 1) @ key.transpose(1, 2) * scale).masked_fill(~seen, -torch.inf)
    return (scores.softmax(-1) @ value).transpose(0, 1)
