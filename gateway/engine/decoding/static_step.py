"""One decode step as a function of buffers that stay where they are, so that it can be recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from gateway.engine.decoding.view import View, additive

if TYPE_CHECKING:
    from torch import Tensor

    from gateway.engine.decoding.kv_cache import SlotCache
    from gateway.engine.decoding.stack import Stack
    from gateway.engine.decoding.varlen import Kernel

SMALLEST_WIDTH = 256


class Bucket(NamedTuple):
    """The first `rows` rows of a cache, seen as far as `width` tokens."""

    rows: int
    width: int


def choose_bucket(rows: int, width: int, most_rows: int, most_width: int) -> Bucket:
    """Return the bucket for so many rows of such a length, in a cache of such a size.

    Sizes double from one bucket to the next, so there are few; the largest is the whole cache.
    """
    return Bucket(
        min(_doubled(rows, 1), most_rows), min(_doubled(width, SMALLEST_WIDTH), most_width)
    )


def _doubled(need: int, smallest: int) -> int:
    size = smallest
    while size < need:
        size *= 2
    return size


class StaticView(View):
    """A view of the first rows of a cache, whose lengths are in a tensor and not in the layout.

    Every row has a token. In that of a row which does not decode, what is written goes to the
    place after its last token: nobody looks there before its own next token stands there.
    """

    def __init__(self, bucket: Bucket, device: Any, kernel: Kernel | None) -> None:
        rows, width = bucket
        super().__init__([(row, width - 1) for row in range(rows)], [], device, kernel)
        # What is copied to the device must be there before anything is recorded.
        self.rows = torch.arange(rows, device=device)
        self.positions = torch.zeros(rows, dtype=torch.long, device=device)

    def forget(self) -> None:
        """Let what follows from the positions be computed again."""
        self._masks.clear()
        self._slots.clear()

    def single_mask(self, window: int | None, like: Tensor) -> Tensor | None:
        key = ("single", window)
        if key not in self._masks:
            asked = torch.arange(self.width, device=self.device)
            here = self.positions[:, None]
            seen = asked <= here
            if window is not None:
                seen &= asked > here - window
            self._masks[key] = additive(seen, like)[:, None, None, :]
        return self._masks[key]


class StaticStep:
    """The step of one bucket: `fill` says who decodes, a call computes the logits of all rows.

    Calls read nothing but the buffers, the weights and the cache, and wait for nothing.
    """

    def __init__(
        self, stack: Stack, cache: SlotCache, bucket: Bucket, device: Any, kernel: Kernel | None
    ) -> None:
        self._stack = stack
        self._cache = cache
        self._view = StaticView(bucket, device, kernel)
        self._ids = torch.zeros(bucket.rows, dtype=torch.long, device=device)
        self._all = torch.arange(bucket.rows, device=device)

    def fill(self, ids: Sequence[int], positions: Sequence[int]) -> None:
        """Tell each row's token and its position."""
        # From memory that is not pinned: copied before this returns, so it need not be kept.
        new = torch.tensor([ids, positions])
        self._ids.copy_(new[0])
        self._view.positions.copy_(new[1])

    def __call__(self) -> Tensor:
        self._view.forget()
        self._cache.begin(self._view)
        return self._stack.logits(self._ids, self._view, self._cache, self._all)
