"""What one forward pass computes: the new tokens of many sequences in one flat row.

Sequences that decode come first, one token each; chunks of prompts follow, each a run of its own.
Linear layers see one row of tokens and read their weights once for all of them; attention works on
the decoding sequences together and on each chunk by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from gateway.engine.decoding.varlen import Kernel, Slots

if TYPE_CHECKING:
    from torch import Tensor

CALL_TOKENS = 128
"""What a call of attention costs beside its work, in tokens read: on a CPU some 10 us."""


class Run(NamedTuple):
    """New tokens of one sequence: `tokens` of them at `first` in the flat row, to be kept in the
    cache's `row` from `start` on."""

    row: int
    start: int
    first: int
    tokens: int

    @property
    def end(self) -> int:
        return self.start + self.tokens


class View:
    """The layout of one flat batch.

    `single_rows` are the cache's rows that decode, in rising order; `apart` are those of them that
    are so much longer than the rest that they are computed alone. `rows` and `positions` say where
    the decoded tokens go. `kernel` is what attends where there is one; see varlen.py.
    """

    def __init__(
        self,
        singles: Sequence[tuple[int, int]],
        chunks: Sequence[Run],
        device: Any,
        kernel: Kernel | None = None,
    ):
        """`singles` are (row, length before); both they and the chunks are sorted by row."""
        self.single_rows = [row for row, _ in singles]
        self.chunks = list(chunks)
        self.device = device
        self.kernel = kernel
        lengths = [length + 1 for _, length in singles]
        self.last_row = max((*self.single_rows, *(run.row for run in chunks)))
        self.longest = max((*lengths, *(run.end for run in chunks)))
        apart = choose_apart(lengths)
        self.apart = [
            (index, self.single_rows[index], lengths[index])
            for index in range(len(lengths))
            if index in apart
        ]
        together = [length for index, length in enumerate(lengths) if index not in apart]
        self.width = max(together, default=0)
        self.span = self.single_rows[-1] + 1 if together else 0
        """How many of the cache's rows the common call covers; rows between are not looked at."""
        self.is_dense = self.single_rows == list(range(self.span))
        self._is_even = bool(together) and min(together) == self.width and self.is_dense
        self._lengths = lengths
        self._masks: dict[Any, Tensor | None] = {}
        self._slots: dict[Any, Slots] = {}

    @cached_property
    def rows(self) -> Tensor:
        return torch.tensor(self.single_rows, dtype=torch.long, device=self.device)

    @cached_property
    def positions(self) -> Tensor:
        before = [length - 1 for length in self._lengths]
        return torch.tensor(before, dtype=torch.long, device=self.device)

    def all_positions(self) -> Tensor:
        """Return the position of every token of the flat row."""
        runs = [torch.arange(run.start, run.end, device=self.device) for run in self.chunks]
        return torch.cat([self.positions, *runs])

    def all_rows(self) -> Tensor:
        """Return the cache's row of every token of the flat row."""
        rows = [row for run in self.chunks for row in [run.row] * run.tokens]
        return torch.tensor([*self.single_rows, *rows], dtype=torch.long, device=self.device)

    def single_mask(self, window: int | None, like: Tensor) -> Tensor | None:
        """Return what is added to the scores of the decoding rows, [span, 1, 1, width]."""
        if self._is_even and not self.apart and (window is None or window >= self.width):
            return None
        key = ("single", window)
        if key not in self._masks:
            lengths = torch.ones(self.span, dtype=torch.long, device=self.device)
            lengths[self.rows] = torch.tensor(self._lengths, device=self.device)
            asked = torch.arange(self.width, device=self.device)
            lengths = lengths.clamp(max=self.width)[:, None]
            seen = asked < lengths
            if window is not None:
                seen &= asked >= lengths - window
            self._masks[key] = additive(seen, like)[:, None, None, :]
        return self._masks[key]

    def chunk_mask(
        self, run: Run, window: int | None, like: Tensor, *, always: bool = False
    ) -> Tensor | None:
        """Return the same for a chunk, [count, end]; None stands for the plain causal mask, unless
        a mask is `always` wanted."""
        if not always and run.start == 0 and (window is None or window >= run.tokens):
            return None
        key = (run.row, window)
        if key not in self._masks:
            asking = torch.arange(run.start, run.end, device=self.device)[:, None]
            asked = torch.arange(run.end, device=self.device)
            seen = asked <= asking
            if window is not None:
                seen &= asked > asking - window
            self._masks[key] = additive(seen, like)
        return self._masks[key]

    def single_slots(self, capacity: int) -> Slots:
        """Return where in rows of `capacity` tokens the decoding rows look."""
        if "single" not in self._slots:
            longest = max(self._lengths)
            ends = torch.cat([self.rows, self.rows[-1:] + 1])
            self._slots["single"] = Slots(
                queries=torch.arange(len(ends), dtype=torch.int32, device=self.device),
                places=(ends * capacity).int(),
                lengths=(self.positions + 1).clamp(max=longest).int(),
                most_queries=1,
                most_keys=longest,
            )
        return self._slots["single"]

    def chunk_slots(self, capacity: int) -> Slots:
        """Return the same for the chunks."""
        if "chunks" not in self._slots:
            first, last = self.chunks[0], self.chunks[-1]
            starts = [run.first - first.first for run in (*self.chunks, last)]
            starts[-1] += last.tokens
            places = [run.row * capacity for run in self.chunks]
            self._slots["chunks"] = Slots(
                queries=self._integers(starts),
                places=self._integers([*places, (last.row + 1) * capacity]),
                lengths=self._integers([run.end for run in self.chunks]),
                most_queries=max(run.tokens for run in self.chunks),
                most_keys=max(run.end for run in self.chunks),
            )
        return self._slots["chunks"]

    def _integers(self, numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int32, device=self.device)


def choose_apart(lengths: Sequence[int]) -> frozenset[int]:
    """Return which sequences are better computed alone than together with the others.

    Together each row costs as much as the longest; alone it costs its own length and a call.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    best, best_cost = 0, len(lengths) * max(lengths, default=0)
    alone = 0
    for count, index in enumerate(order, 1):
        alone += lengths[index] + CALL_TOKENS
        rest = len(lengths) * lengths[order[count]] if count < len(order) else 0
        if alone + rest < best_cost:
            best, best_cost = count, alone + rest
    return frozenset(order[:best])


def additive(seen: Tensor, like: Tensor) -> Tensor:
    return torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill_(
        ~seen, -torch.inf
    )
