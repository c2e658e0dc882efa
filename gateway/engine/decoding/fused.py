"""Decode steps of few sequences in one call: the whole stack as a list of tasks for a team.

Between the products of a layer are some twenty small operators, and starting each of them takes
longer than what it computes. Here they are three, compiled (`layer_code.py`), and a step is a list
of tasks that torch's OpenMP threads do one after the other (`gemv.py`). Everything else goes by
`Stack.logits`, with which the first step of each size is compared. See ADR 25.
"""

from __future__ import annotations

import logging
import struct
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from gateway.engine.weights.gemv import MOST_ROWS, BoundGemv, Gemv, LayerCode
from gateway.engine.weights.linear import PackedProduct, SharedProduct

if TYPE_CHECKING:
    from torch import Tensor

    from gateway.engine.decoding.kv_cache import SlotCache
    from gateway.engine.decoding.stack import Layer, Stack
    from gateway.engine.decoding.view import View

logger = logging.getLogger(__name__)

WIDTH = 24
"""Fields that a task has room for."""


class FusedSteps:
    """The steps of one model, each size of them built when it is first met. Used by one thread."""

    def __init__(self, stack: Stack, cache: SlotCache, gemv: Gemv) -> None:
        """Compile what this model's heads need, if no other model had such.

        Raises ValueError for a model that is not made for it.
        """
        _check(stack)
        layer = stack.layers[0]
        self._code = gemv.layer_code(layer.size, has_head_norm=layer.head_norm is not None)
        self._gemv = gemv
        self._stack = stack
        self._cache = cache
        self._buffers = _Buffers()
        self._steps: dict[int, _Step] = {}
        self._works = True

    def logits(self, ids: Tensor, view: View, wanted: Tensor) -> Tensor | None:
        """Return what `Stack.logits` does; None for a step that must go that way."""
        rows = len(view.single_rows)
        if view.chunks or rows > MOST_ROWS or self._cache.capacity % 16 or not self._works:
            return None
        if (step := self._steps.get(rows)) is not None:
            return step.run(ids, view)[wanted]
        if not all(_is_packed(product) for product in self._stack.products()):
            return None  # they are not packed yet
        step = _Step(self._stack, self._cache, self._gemv, self._code, self._buffers, rows)
        return self._try(step, ids, view, wanted)

    def _try(self, step: _Step, ids: Tensor, view: View, wanted: Tensor) -> Tensor:
        found = step.run(ids, view)[wanted].float()
        expected = self._stack.logits(ids, view, self._cache, wanted)
        near = 5e-2 * float(expected.abs().max())
        self._works = torch.allclose(found, expected.float(), rtol=5e-2, atol=near)
        if self._works:
            self._steps[len(view.single_rows)] = step
        else:
            logger.warning("steps in one call say something else: they are left to torch")
        return expected


class _Buffers:
    """What tasks write for those that follow: all layers and all sizes of steps use the same."""

    def __init__(self) -> None:
        self._tensors: dict[tuple[str, int], Tensor] = {}

    def get(self, name: str, rows: int, size: int) -> Tensor:
        if (name, size) not in self._tensors:
            self._tensors[name, size] = torch.zeros(MOST_ROWS, size, dtype=torch.bfloat16)
        return self._tensors[name, size][:rows]


class _Step:
    """The tasks of a step of so many tokens, and what they read and write."""

    def __init__(
        self,
        stack: Stack,
        cache: SlotCache,
        gemv: Gemv,
        code: LayerCode,
        buffers: _Buffers,
        rows: int,
    ) -> None:
        self._stack, self._cache, self._gemv, self._code = stack, cache, gemv, code
        self._rows = rows
        self._buffer = partial(buffers.get, rows=rows)
        self._list: list[tuple[int, list[int]]] = []
        self._attentions: list[int] = []
        self._counters: list[int] = []
        self._kept: list[Any] = []
        self._allocations = -1
        first = stack.layers[0]
        self._hidden = self._buffer("hidden", size=first.before_attention.weight.numel())
        self._turns = [self._buffer(name, size=first.size) for name in ("cos", "sin")]
        self._places = torch.zeros(2, rows, dtype=torch.long)
        self._write()
        self._table = torch.zeros(len(self._list), WIDTH, dtype=torch.long)
        for index, (_, fields) in enumerate(self._list):
            self._table[index, : len(fields)] = torch.tensor(fields)
        self._flat, self._resets = self._table.view(-1), torch.tensor(self._counters)
        starts = [self._table[index].data_ptr() for index in range(len(self._list))]
        pairs = [[function, start] for (function, _), start in zip(self._list, starts, strict=True)]
        self._program = torch.tensor([*pairs, [0, 0]])

    def run(self, ids: Tensor, view: View) -> Tensor:
        """Return the logits of all tokens; they are overwritten by the next step."""
        if self._allocations != self._cache.allocations:
            self._point()
        hidden = self._stack.embed(ids)
        self._hidden.copy_(hidden)
        for buffer, turn in zip(self._turns, self._stack.turns(hidden, view), strict=True):
            buffer.copy_(turn[:, 0])
        self._places[0], self._places[1] = view.rows, view.positions
        self._flat[self._resets] = 0
        self._gemv.run_team(self._code.run, self._program.data_ptr())
        return self._logits

    def _write(self) -> None:
        zeros = torch.zeros(1, self._hidden.shape[1], dtype=torch.bfloat16)
        self._kept.append(zeros)
        added, added_bytes = zeros, 0
        for layer in self._stack.layers:
            normed = self._norm(added, added_bytes, layer.before_attention)
            found = self._attend(self._product("qkv", normed, layer.qkv), layer)
            added = self._product("added", found, layer.out)
            normed = self._norm(added, _row_bytes(added), layer.before_mlp)
            gated = self._gate(self._product("gate_up", normed, layer.gate_up), layer.inner)
            added = self._product("added", gated, layer.down)
            added_bytes = _row_bytes(added)
        head = self._stack.head
        logits = self._product("logits", self._norm(added, added_bytes, self._stack.norm), head)
        self._logits = logits[:, : _bound(head).outputs]

    def _norm(self, added: Tensor, added_bytes: int, norm: Any) -> Tensor:
        output = self._buffer("normed", size=self._hidden.shape[1])
        self._kept.append(norm.weight)
        self._add(
            self._code.norm,
            [self._hidden.data_ptr(), added.data_ptr(), norm.weight.data_ptr(), output.data_ptr()],
            [_bits(norm.eps), output.shape[1], _row_bytes(output), added_bytes],
            self._rows,
        )
        return output

    def _product(self, name: str, given: Tensor, shared: Any) -> Tensor:
        bound = _bound(shared)
        output = self._buffer(name, size=bound.width)
        self._kept.append(bound)
        *fields, units, _ = bound.fields(given.data_ptr(), output.data_ptr())
        self._add(self._gemv.functions[self._rows - 1], fields, [], units)
        return output

    def _gate(self, given: Tensor, size: int) -> Tensor:
        output = self._buffer("gated", size=size)
        sizes = [self._rows, 2 * size, _row_bytes(given), _row_bytes(output)]
        self._add(self._code.gate, [given.data_ptr(), output.data_ptr()], sizes, size // 16)
        return output

    def _attend(self, given: Tensor, layer: Layer) -> Tensor:
        output = self._buffer("attended", size=layer.heads * layer.size)
        query, key, eps = layer.head_norm or (zero := torch.zeros(0), zero, 0.0)
        self._kept += [query, key]
        self._attentions.append(len(self._list))
        tensors = [*self._places, *self._turns, query, key]
        self._add(
            self._code.attend,
            [given.data_ptr(), output.data_ptr(), 0, 0, *(each.data_ptr() for each in tensors)],
            [
                *(_bits(eps), _bits(layer.scaling), layer.window or 0),
                *(layer.heads // layer.shared_heads, layer.shared_heads),
                *(_row_bytes(given), _row_bytes(output), 0, 0, 0),
            ],
            self._rows * layer.shared_heads,
        )
        return output

    def _point(self) -> None:
        """Have the tasks look at the tensors that the cache has now."""
        for layer, index in enumerate(self._attentions):
            keys, values = self._cache.tensors(layer)
            row, head, _, inner = (stride * keys.element_size() for stride in keys.stride())
            is_wide = keys.stride(3) != 1
            self._program[index, 0] = self._code.attend_wide if is_wide else self._code.attend
            for name, number in (
                ("keys", keys.data_ptr()),
                ("values", values.data_ptr()),
                ("row_bytes", row),
                ("head_bytes", head),
                ("inner_bytes", inner),
            ):
                self._table[index, self._code.places[name]] = number
        self._allocations = self._cache.allocations

    def _add(self, function: int, addresses: list[int], sizes: list[int], units: int) -> None:
        fields = [*addresses, *sizes, units, 0]
        self._counters.append(len(self._list) * WIDTH + len(fields) - 1)
        self._list.append((function, fields))


def _check(stack: Stack) -> None:
    first = stack.layers[0]
    weight = first.before_attention.weight
    numbers = torch.linspace(-4, 4, 16)
    if weight.device.type != "cpu" or weight.dtype is not torch.bfloat16:
        raise ValueError("numbers of another kind")
    if first.size % 32 or weight.numel() % 16 or first.inner % 16:
        raise ValueError("heads or layers of another size")
    for layer in stack.layers:
        if layer.heads % layer.shared_heads:
            raise ValueError("heads that share no key")
        if not torch.equal(layer.activate(numbers), torch.nn.functional.silu(numbers)):
            raise ValueError("another activation")


def _is_packed(shared: Any) -> bool:
    product = shared.product if isinstance(shared, SharedProduct) else None
    return isinstance(product, PackedProduct) and product.few is not None


def _bound(shared: Any) -> BoundGemv:
    bound = shared.product.few
    assert isinstance(bound, BoundGemv), "it is packed"
    return bound


def _row_bytes(tensor: Tensor) -> int:
    return tensor.stride(0) * tensor.element_size()


def _bits(number: float) -> int:
    """Return the bits of a float32."""
    bits: int = struct.unpack("<I", struct.pack("<f", number))[0]
    return bits
