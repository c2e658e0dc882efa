"""Pools hidden states into vectors, in float32 whatever the model computes in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from gateway.core.pooling import PoolingMode

if TYPE_CHECKING:
    from torch import Tensor


class Pooler:
    """The modes' vectors side by side, then `steps` one after the other."""

    def __init__(
        self, modes: Sequence[PoolingMode], steps: Sequence[Callable[[Tensor], Tensor]]
    ) -> None:
        self._modes = modes
        self._steps = steps

    def pool(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """Return one vector a row of `hidden` (rows x tokens x size), whose first `lengths` tokens
        count and whose others are padding."""
        import torch

        hidden = hidden.float()
        columns = torch.arange(hidden.shape[1], device=hidden.device)
        inside = (columns < lengths[:, None])[..., None]
        vectors = torch.cat([_pool(mode, hidden, inside, lengths) for mode in self._modes], dim=1)
        for step in self._steps:
            vectors = step(vectors)
        return vectors


def _pool(mode: PoolingMode, hidden: Tensor, inside: Tensor, lengths: Tensor) -> Tensor:
    """`inside` is rows x tokens x 1. Filled and not multiplied: padding may hold anything."""
    import torch

    if mode == "cls":
        return hidden[:, 0]
    if mode == "lasttoken":
        return hidden[torch.arange(len(lengths), device=hidden.device), lengths - 1]
    if mode == "max":
        return hidden.masked_fill(~inside, float("-inf")).amax(dim=1)
    kept = hidden.masked_fill(~inside, 0.0)
    counts = lengths[:, None].float()
    if mode == "weightedmean":
        weights = torch.arange(1, hidden.shape[1] + 1, device=hidden.device)[:, None]
        return (kept * weights).sum(dim=1) / (counts * (counts + 1) / 2)
    return kept.sum(dim=1) / (counts if mode == "mean" else counts.sqrt())
