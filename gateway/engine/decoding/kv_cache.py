"""Keys and values of many sequences side by side, one row for each, as a transformers Cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import Cache

from gateway.core.errors import NoRoom
from gateway.engine.memory.memory import FIRST_CAPACITY, Memory, Unlimited

if TYPE_CHECKING:
    from torch import Tensor

    from gateway.engine.decoding.view import View

GROWTH = 1.25
"""How much larger it becomes when a sequence outgrows it: every row grows with the longest."""
TIGHT_STEP = 64
"""Where memory is short a cache grows by so many tokens."""
ROOMY = 4
"""A cache this many times larger than what is left in it is made smaller."""

WIDE = 12
"""Rows times heads from which on decoding on a CPU is faster by plain products."""


class CacheFull(NoRoom):
    """The memory budget has no room for a larger cache."""


class Slot:
    """The place of one sequence: its row, which may change, and how many tokens are in it.

    `expected` is how many there will be at least, so that the cache grows once for a long prompt.
    """

    def __init__(self, row: int) -> None:
        self.row = row
        self.length = 0
        self.expected = 0


class _Shape:
    """What one layer keeps of a token: learnt from the first that it is given."""

    def __init__(self, keys: Tensor, values: Tensor, *, is_token_major: bool = False) -> None:
        """Takes new keys and values, of shape [tokens, heads, size]."""
        self._is_token_major = is_token_major
        self.key_sizes = (keys.shape[1], keys.shape[2])
        self.value_sizes = (values.shape[1], values.shape[2])
        self._like = keys.new_empty(0)
        elements = keys.shape[1] * keys.shape[2] + values.shape[1] * values.shape[2]
        self.token_bytes = elements * keys.element_size()

    def allocate_keys(self, rows: int, capacity: int) -> Tensor:
        heads, size = self.key_sizes
        on_cpu = self._like.device.type == "cpu" and not self._is_token_major
        if on_cpu and rows * heads >= WIDE:
            # The same to look at, but a key's numbers lie apart: attention.py says why.
            return self._zeros(rows, heads, size, capacity).transpose(2, 3)
        return self._allocate(rows, heads, capacity, size)

    def allocate_values(self, rows: int, capacity: int) -> Tensor:
        heads, size = self.value_sizes
        return self._allocate(rows, heads, capacity, size)

    def _allocate(self, rows: int, heads: int, capacity: int, size: int) -> Tensor:
        if self._is_token_major:
            # The same to look at, but a token's heads lie together: varlen.py wants them so.
            return self._zeros(rows, capacity, heads, size).transpose(1, 2)
        return self._zeros(rows, heads, capacity, size)

    def _zeros(self, *sizes: int) -> Tensor:
        # Zeros: a masked place still takes part in products, where a NaN would stay one.
        return self._like.new_zeros(sizes)


class SlotCache(Cache):  # type: ignore[misc]
    """One tensor of keys and one of values a layer, of shape [rows, heads, capacity, size].

    Sequences fill the rows from 0 up without gaps, so that a batch is a view and no copy. Used by
    one thread. `begin` says what the next forward pass touches.
    """

    def __init__(self, *, is_token_major: bool = False) -> None:
        """`is_token_major` is for attention by varlen.py; else a head's tokens lie together."""
        super().__init__(layers=[])
        self._is_token_major = is_token_major
        self.memory: Memory = Unlimited()
        self.slots: list[Slot] = []
        self._shapes: list[_Shape] = []
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._rows = 0
        self._capacity = 0
        self._view: View | None = None
        self.allocations = 0
        """Grows whenever the tensors are others than before."""

    @property
    def rows(self) -> int:
        """How many rows there are, taken or not."""
        return self._rows

    @property
    def capacity(self) -> int:
        """How many tokens a row holds."""
        return self._capacity

    @property
    def token_bytes(self) -> int:
        """What one token of one sequence takes; 0 before the first forward pass."""
        return sum(shape.token_bytes for shape in self._shapes)

    @property
    def memory_bytes(self) -> int:
        return self._rows * self._capacity * self.token_bytes

    @property
    def is_wide(self) -> bool:
        """Whether the tokens of keys lie side by side, and not their numbers."""
        return bool(self._keys) and self._keys[0].stride(3) != 1

    def tensors(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return the keys and values of a layer, as they are until `allocations` grows."""
        return self._keys[layer], self._values[layer]

    def learn(self, layers: int, token: Tensor) -> None:
        """Take note of what every layer keeps of a token, of shape [1, heads, size], before any is
        computed; without effect where that is known. For layers that are alike, with keys as large
        as values."""
        if not self._shapes:
            shape = _Shape(token, token, is_token_major=self._is_token_major)
            self._shapes = [shape] * layers

    def open(self) -> Slot:
        """Give a sequence its row."""
        slot = Slot(len(self.slots))
        self.slots.append(slot)
        return slot

    @torch.inference_mode()
    def release(self, slot: Slot) -> None:
        """Take a sequence's row back; the last row moves into the gap. What is then far too large
        is made smaller, and the last to leave frees the memory."""
        last = self.slots.pop()
        if last is not slot:
            for tensor in (*self._keys, *self._values):
                if last.row < self._rows:
                    tensor[slot.row, :, : last.length] = tensor[last.row, :, : last.length]
            self.slots[slot.row] = last
            last.row = slot.row
        self._shrink()

    def begin(self, view: View, *, is_needed: bool = True) -> None:
        """Make room for what `view` touches; the layers' updates follow.

        Raises CacheFull. Only what `is_needed` is worth another model's place.
        """
        self._view = view
        self._require(view.last_row + 1, view.longest, is_needed)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the new keys and values of a layer, of shape [1, heads, tokens, size]; return all
        that the layer holds, for `attention.attend`."""
        return self.write(layer_idx, key_states[0].transpose(0, 1), value_states[0].transpose(0, 1))

    def write(self, layer: int, new_keys: Tensor, new_values: Tensor) -> tuple[Tensor, Tensor]:
        """The same for [tokens, heads, size]."""
        view = self._view
        assert view is not None, "write without begin"
        if layer == len(self._shapes):
            # The first forward pass of all learns the layers one by one.
            self._learn(_Shape(new_keys, new_values, is_token_major=self._is_token_major))
        keys, values = self._keys[layer], self._values[layer]
        if count := len(view.single_rows):
            keys[view.rows, :, view.positions] = new_keys[:count]
            values[view.rows, :, view.positions] = new_values[:count]
        for run in view.chunks:
            fed, place = slice(run.first, run.first + run.tokens), slice(run.start, run.end)
            keys[run.row, :, place] = new_keys[fed].transpose(0, 1)
            values[run.row, :, place] = new_values[fed].transpose(0, 1)
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    @torch.inference_mode()
    def copy_out(self, slot: Slot, start: int, end: int) -> Tensor | None:
        """Return a copy of what all layers keep of these tokens, of shape [2 * layers, heads,
        tokens, size]; None for a model whose layers differ in shape."""
        parts = [tensor[slot.row, :, start:end] for tensor in (*self._keys, *self._values)]
        if not parts or len({part.shape for part in parts}) > 1:
            return None
        return torch.stack(parts)

    @torch.inference_mode()
    def copy_in(self, slot: Slot, blocks: Sequence[Tensor]) -> None:
        """Begin a sequence with what `copy_out` returned. Raises CacheFull."""
        length = sum(block.shape[2] for block in blocks)
        self._require(slot.row + 1, length, False)
        tensors = (*self._keys, *self._values)
        for index, tensor in enumerate(tensors):
            torch.cat([block[index] for block in blocks], dim=1, out=tensor[slot.row, :, :length])
        slot.length = length

    def _require(self, rows: int, capacity: int, is_needed: bool) -> None:
        if rows <= self._rows and capacity <= self._capacity:
            return
        expected = max((capacity, *(slot.expected for slot in self.slots)))
        try:
            wide = max(self._rows, _doubled(rows))
            self._resize(wide, self._roomy(expected), is_needed=False)
        except CacheFull:
            # Then no more than must be now.
            longest = max(slot.length for slot in self.slots)
            tight = _rounded_up(max(capacity, longest), TIGHT_STEP)
            self._resize(max(rows, len(self.slots)), tight, is_needed=is_needed)

    def _roomy(self, capacity: int) -> int:
        if capacity <= self._capacity:
            return self._capacity
        return _rounded_up(max(capacity, int(self._capacity * GROWTH)), FIRST_CAPACITY)

    def _shrink(self) -> None:
        rows = len(self.slots)
        longest = max((slot.length for slot in self.slots), default=0)
        if not rows:
            self._resize(0, 0)
        elif self._rows * self._capacity > ROOMY * rows * max(longest, FIRST_CAPACITY):
            self._resize(_doubled(rows), _rounded_up(longest, FIRST_CAPACITY))

    @torch.inference_mode()
    def _resize(self, rows: int, capacity: int, *, is_needed: bool = True) -> None:
        more_bytes = (rows * capacity - self._rows * self._capacity) * self.token_bytes
        if more_bytes > 0 and not self.memory.reserve(more_bytes, is_needed=is_needed):
            raise CacheFull("There is no memory for more context of this model.")
        try:
            self._reallocate(rows, capacity)
        except RuntimeError as error:  # the allocator's; layers that grew already do no harm
            if more_bytes > 0:
                self.memory.release(more_bytes)
            raise CacheFull("The machine has no memory for more context.") from error
        if more_bytes < 0:
            self.memory.release(-more_bytes)

    def _reallocate(self, rows: int, capacity: int) -> None:
        self.allocations += 1
        old_rows, old_capacity = min(self._rows, rows), min(self._capacity, capacity)
        if not rows:
            self._keys.clear()
            self._values.clear()
        for layer in range(len(self._keys)):
            for tensors, allocate in self._both(layer):
                old = tensors[layer]
                tensors[layer] = allocate(rows, capacity)
                tensors[layer][:old_rows, :, :old_capacity] = old[:old_rows, :, :old_capacity]
        self._rows, self._capacity = rows, capacity
        for layer in range(len(self._keys), len(self._shapes) if rows else 0):
            self._allocate(layer)

    def _learn(self, shape: _Shape) -> None:
        # What `begin` made room for had no size yet.
        if not self.memory.reserve(self._rows * self._capacity * shape.token_bytes):
            raise CacheFull("There is no memory for the context of this model.")
        self._shapes.append(shape)
        self._allocate(len(self._shapes) - 1)

    def _allocate(self, layer: int) -> None:
        for tensors, allocate in self._both(layer):
            tensors.append(allocate(self._rows, self._capacity))

    def _both(self, layer: int) -> tuple[tuple[list[Tensor], Callable[[int, int], Tensor]], ...]:
        shape = self._shapes[layer]
        return (self._keys, shape.allocate_keys), (self._values, shape.allocate_values)


def _doubled(need: int) -> int:
    return 1 << max(0, need - 1).bit_length()


def _rounded_up(need: int, step: int) -> int:
    return -(-need // step) * step
