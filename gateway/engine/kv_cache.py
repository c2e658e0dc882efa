"""Keys and values of many sequences side by side, one row for each, as a transformers Cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import Cache

if TYPE_CHECKING:
    from torch import Tensor

FIRST_CAPACITY = 256
"""Tokens that a new cache holds a row; it doubles whenever a sequence outgrows it."""


class Slot:
    """The place of one sequence: its row, which may change, and how many tokens are in it."""

    def __init__(self, row: int) -> None:
        self.row = row
        self.length = 0


class View:
    """What one forward pass touches: `rows` of the cache, and each row's length before it."""

    def __init__(self, first: int, lengths: list[int], tokens: int, device: Any) -> None:
        self.first = first
        self.count = len(lengths)
        self.tokens = tokens
        self.lengths = torch.tensor(lengths, device=device)
        self.width = max(lengths) + tokens
        self.is_fresh = self.width == tokens
        self.rows = torch.arange(first, first + self.count, device=device)
        self._masks: dict[int | None, Tensor | None] = {}

    def mask(self, window: int | None) -> Tensor | None:
        """Return which cached tokens each new token sees, of shape [rows, 1, tokens, width].

        None stands for the plain causal mask. `window` is how far back a sliding layer looks.
        """
        if window not in self._masks:
            self._masks[window] = self._make_mask(window)
        return self._masks[window]

    def _make_mask(self, window: int | None) -> Tensor | None:
        if self.is_fresh and self.count == 1 and (window is None or window >= self.tokens):
            return None
        steps = torch.arange(self.tokens, device=self.lengths.device)
        asking = (self.lengths[:, None] + steps)[:, None, :, None]
        asked = torch.arange(self.width, device=self.lengths.device)
        mask = asked <= asking
        return mask if window is None else mask & (asked > asking - window)


class SlotCache(Cache):  # type: ignore[misc]
    """One tensor of keys and one of values a layer, of shape [rows, heads, capacity, size].

    Active sequences fill the rows from 0 up without gaps, so that a batch is a view and no copy.
    Used by one thread. `begin` says what the next forward pass touches.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.slots: list[Slot] = []
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._view: View | None = None

    @property
    def memory_bytes(self) -> int:
        tensors = (*self._keys, *self._values)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def open(self) -> Slot:
        """Give a sequence its row."""
        slot = Slot(len(self.slots))
        self.slots.append(slot)
        return slot

    @torch.inference_mode()
    def release(self, slot: Slot) -> None:
        """Take a sequence's row back; the last row moves into the gap. The last to leave frees
        the memory."""
        last = self.slots.pop()
        if not self.slots:
            self._keys.clear()
            self._values.clear()
        if last is slot:
            return
        for tensor in (*self._keys, *self._values):
            if tensor.shape[0] > last.row:
                tensor[slot.row, :, : last.length] = tensor[last.row, :, : last.length]
        self.slots[slot.row] = last
        last.row = slot.row

    def begin(self, view: View) -> None:
        """Make room for what `view` touches; the layers' updates follow."""
        self._view = view
        for layer in range(len(self._keys)):
            self._reserve(layer, view)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the new keys and values of a layer; return all that the view's rows hold."""
        view = self._view
        assert view is not None, "update without begin"
        if layer_idx == len(self._keys):
            self._keys.append(_empty_like(key_states))
            self._values.append(_empty_like(value_states))
            self._reserve(layer_idx, view)
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        if view.tokens == 1:
            keys[view.rows, :, view.lengths] = key_states[:, :, 0]
            values[view.rows, :, view.lengths] = value_states[:, :, 0]
        else:
            start = view.width - view.tokens
            keys[view.first, :, start : view.width] = key_states[0]
            values[view.first, :, start : view.width] = value_states[0]
        rows = slice(view.first, view.first + view.count)
        return keys[rows, :, : view.width], values[rows, :, : view.width]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0 if self._view is None else self._view.width - self._view.tokens

    def _reserve(self, layer: int, view: View) -> None:
        rows, width = view.first + view.count, max(view.width, 1)
        have_rows, _, have_width, _ = self._keys[layer].shape
        if rows <= have_rows and width <= have_width:
            return
        want_rows = max(have_rows, _grown(have_rows, rows, 1))
        want_width = max(have_width, _grown(have_width, width, FIRST_CAPACITY))
        self._keys[layer] = _enlarged(self._keys[layer], want_rows, want_width)
        self._values[layer] = _enlarged(self._values[layer], want_rows, want_width)


def _grown(have: int, need: int, least: int) -> int:
    size = max(have, least)
    while size < need:
        size *= 2
    return size


def _empty_like(states: Tensor) -> Tensor:
    return states.new_zeros((0, states.shape[1], 0, states.shape[3]))


def _enlarged(tensor: Tensor, rows: int, width: int) -> Tensor:
    larger = tensor.new_zeros((rows, tensor.shape[1], width, tensor.shape[3]))
    larger[: tensor.shape[0], :, : tensor.shape[2]] = tensor
    return larger
