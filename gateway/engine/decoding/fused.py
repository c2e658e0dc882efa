"""Steps of few tokens in one call: the whole stack as a list of tasks for a team.

Between the products of a layer are some twenty small operators, and starting each of them takes
longer than what it computes. Here they are four, compiled (`layer_code.py`), and a step is a list
of tasks that torch's OpenMP threads do one after the other (`gemv.py`). A token is a token, be it
of one who decodes or of a prompt. Everything else goes by `Stack.logits`, with which the first step
of each kind is compared. See ADR 25.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from gateway.engine.weights.gemv import BoundGemv, Gemv, LayerCode
from gateway.engine.weights.linear import PackedProduct, SharedProduct
from gateway.engine.weights.tasks import ATTEND, GATE, NORM, PRODUCT

if TYPE_CHECKING:
    from torch import Tensor

    from gateway.engine.decoding.kv_cache import SlotCache
    from gateway.engine.decoding.stack import Layer, Stack
    from gateway.engine.decoding.view import View

logger = logging.getLogger(__name__)

WIDTH = 24
"""Fields that a task has room for."""
NEAR = 512
"""Tokens of a prompt up to here are looked at one by one; farther on torch's attention, which
multiplies matrices, takes less than what is won between the products."""


class FusedSteps:
    """The steps of one model. Used by one thread."""

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
        self._buffers = _make_buffers(stack, gemv)
        self._program: _Program | None = None
        self._works = True
        self.tried: set[tuple[bool, bool]] = set()
        """The kinds of steps that were compared: with prompts in them, over wide keys."""

    @property
    def memory_bytes(self) -> int:
        """What it takes from the load on: room for what the tasks write."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def logits(self, ids: Tensor, view: View, wanted: Tensor) -> Tensor | None:
        """Return what `Stack.logits` does; None for a step that must go that way."""
        if not self._works or not self._is_for(len(ids), view):
            return None
        if self._program is None:
            if not all(_is_packed(product) for product in self._stack.products()):
                return None  # they are not packed yet
            self._program = _Program(
                self._stack, self._cache, self._gemv, self._code, self._buffers
            )
        kind = bool(view.chunks), self._cache.is_wide
        if kind in self.tried:
            return self._program.run(ids, view, wanted)
        if not len(wanted):
            return None  # there is nothing to compare
        expected = self._try(self._program, ids, view, wanted)
        self.tried.add(kind)
        return expected

    def _is_for(self, tokens: int, view: View) -> bool:
        is_few = tokens <= self._gemv.most_rows or self._gemv.has_dot
        farthest = max((run.end for run in view.chunks), default=0)
        return is_few and farthest <= NEAR and self._cache.capacity % 16 == 0

    def _try(self, program: _Program, ids: Tensor, view: View, wanted: Tensor) -> Tensor:
        """Compare a step with what torch's operators say, which is returned."""
        found = program.run(ids, view, wanted).float()
        expected = self._stack.logits(ids, view, self._cache, wanted)
        near = 5e-2 * float(expected.abs().max())
        self._works = torch.allclose(found, expected.float(), rtol=5e-2, atol=near)
        if not self._works:
            logger.warning("steps in one call say something else: they are left to torch")
        return expected


class _Program:
    """The tasks of a step, and what they read and write: for any count of tokens."""

    def __init__(
        self,
        stack: Stack,
        cache: SlotCache,
        gemv: Gemv,
        code: LayerCode,
        buffers: Mapping[str, Tensor],
    ) -> None:
        self._stack, self._cache, self._gemv, self._code = stack, cache, gemv, code
        self._buffers = buffers
        self._tasks: list[tuple[int, list[int]]] = []
        self._attentions: list[tuple[int, int]] = []
        self._kept: list[Any] = []
        # Where in the tasks the count of tokens is, and what follows from it.
        self._counts: list[int] = []
        self._tiles: list[int] = []
        self._shared_counts: list[int] = []
        self._allocations = -1
        self._rows = 0
        self._shared_heads = stack.layers[0].shared_heads
        self._hidden = buffers["hidden"]
        self._turns = [buffers[name] for name in ("cos", "sin")]
        self._places = torch.zeros(2, gemv.most_rows, dtype=torch.long)
        self._added = self._write()
        self._table = torch.zeros(len(self._tasks), WIDTH, dtype=torch.long)
        for index, (_, fields) in enumerate(self._tasks):
            self._table[index, : len(fields)] = torch.tensor(fields)
        self._flat = self._table.view(-1)
        self._taken = torch.tensor(
            [index * WIDTH + len(fields) - 1 for index, (_, fields) in enumerate(self._tasks)]
        )
        starts = [self._table[index].data_ptr() for index in range(len(self._tasks))]
        pairs = [
            [function, start] for (function, _), start in zip(self._tasks, starts, strict=True)
        ]
        self._calls = torch.tensor([*pairs, [0, 0]])

    def run(self, ids: Tensor, view: View, wanted: Tensor) -> Tensor:
        """Return the logits of the tokens that are wanted."""
        if self._allocations != self._cache.allocations:
            self._point()
        hidden = self._stack.embed(ids)
        turns = self._stack.turns(hidden, view)
        places = torch.stack([view.all_rows(), view.all_positions()])
        # Whoever looks back finds in the cache what a part before has kept there.
        for start in range(0, len(ids), self._gemv.most_rows):
            part = slice(start, start + self._gemv.most_rows)
            hidden[part] = self._run(hidden[part], [turn[part] for turn in turns], places[:, part])
        return self._stack.head(self._stack.norm(hidden[wanted]))

    def _run(self, hidden: Tensor, turns: Sequence[Tensor], places: Tensor) -> Tensor:
        """Return what the layers make of tokens: so many that the buffers hold them."""
        rows = len(hidden)
        if self._rows != rows:
            self._count(rows)
        self._hidden[:rows] = hidden
        for buffer, turn in zip(self._turns, turns, strict=True):
            buffer[:rows] = turn[:, 0]
        self._places[:, :rows] = places
        self._flat[self._taken] = 0
        self._gemv.run_team(self._code.run, self._calls.data_ptr())
        return self._hidden[:rows] + self._added[:rows, : hidden.shape[1]]

    def _write(self) -> Tensor:
        """Write the tasks of all layers; return what the last one adds."""
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
        return added

    def _norm(self, added: Tensor, added_bytes: int, norm: Any) -> Tensor:
        output = self._buffers["normed"]
        self._kept.append(norm.weight)
        task = self._add(
            self._code.norm,
            [self._hidden.data_ptr(), added.data_ptr(), norm.weight.data_ptr(), output.data_ptr()],
            [_bits(norm.eps), output.shape[1], _row_bytes(output), added_bytes],
        )
        self._counts.append(task + len(NORM))
        return output

    def _product(self, name: str, given: Tensor, shared: Any) -> Tensor:
        bound = _bound(shared)
        output = self._buffers[name]
        self._kept.append(bound)
        *fields, units, _ = bound.fields(given.data_ptr(), output.data_ptr(), 1)
        task = self._add(self._gemv.function, fields, [], units)
        self._counts.append(task + PRODUCT.index("rows"))
        self._tiles.append(task + PRODUCT.index("tile"))
        return output

    def _gate(self, given: Tensor, size: int) -> Tensor:
        output = self._buffers["gated"]
        sizes = [1, 2 * size, _row_bytes(given), _row_bytes(output)]
        addresses = [given.data_ptr(), output.data_ptr()]
        task = self._add(self._code.gate, addresses, sizes, size // 16)
        self._counts.append(task + GATE.index("rows"))
        return output

    def _attend(self, given: Tensor, layer: Layer) -> Tensor:
        output = self._buffers["attended"]
        query, key, eps = layer.head_norm or (zero := torch.zeros(0), zero, 0.0)
        self._kept += [query, key]
        tensors = [*self._places, *self._turns, query, key]
        addresses = [given.data_ptr(), output.data_ptr(), 0, 0, *(t.data_ptr() for t in tensors)]
        sizes = [
            *(_bits(eps), _bits(layer.scaling), layer.window or 0),
            *(layer.heads // layer.shared_heads, layer.shared_heads),
            *(_row_bytes(given), _row_bytes(output), 0, 0, 0),
        ]
        tasks = [self._add(function, addresses, sizes) for function in self._code.narrow]
        self._attentions.append((tasks[0] // WIDTH, tasks[1] // WIDTH))
        self._shared_counts += [task + len(ATTEND) for task in tasks]
        return output

    def _count(self, rows: int) -> None:
        """Have the tasks be for so many tokens."""
        self._flat[self._counts] = rows
        self._flat[self._tiles] = self._gemv.tile(rows)
        self._flat[self._shared_counts] = rows * self._shared_heads
        self._rows = rows

    def _point(self) -> None:
        """Have the tasks look at the tensors that the cache has now."""
        for layer, tasks in enumerate(self._attentions):
            keys, values = self._cache.tensors(layer)
            row, head, _, inner = (stride * keys.element_size() for stride in keys.stride())
            code = self._code.wide if self._cache.is_wide else self._code.narrow
            for index, function in zip(tasks, code, strict=True):
                self._calls[index, 0] = function
                for name, number in (
                    ("keys", keys.data_ptr()),
                    ("values", values.data_ptr()),
                    ("row_bytes", row),
                    ("head_bytes", head),
                    ("inner_bytes", inner),
                ):
                    self._table[index, ATTEND.index(name)] = number
        self._allocations = self._cache.allocations

    def _add(self, function: int, addresses: list[int], sizes: list[int], units: int = 0) -> int:
        """Add a task; return where in the table it begins."""
        self._tasks.append((function, [*addresses, *sizes, units, 0]))
        return (len(self._tasks) - 1) * WIDTH


def _make_buffers(stack: Stack, gemv: Gemv) -> dict[str, Tensor]:
    """Return what tasks write for those that follow, by what it is: all layers use the same."""
    layer = stack.layers[0]
    hidden, queries = layer.before_attention.weight.numel(), layer.heads * layer.size
    own = {"hidden": hidden, "normed": hidden, "cos": layer.size, "sin": layer.size}
    own |= {"attended": queries, "gated": layer.inner}
    joint = queries + 2 * layer.shared_heads * layer.size
    products = {"qkv": joint, "added": hidden, "gate_up": 2 * layer.inner}
    sizes = own | {name: gemv.width(size) for name, size in products.items()}
    return {
        name: torch.zeros(gemv.most_rows, size, dtype=torch.bfloat16)
        for name, size in sizes.items()
    }


def _check(stack: Stack) -> None:
    first = stack.layers[0]
    weight = first.before_attention.weight
    numbers = torch.linspace(-4, 4, 16)
    if weight.device.type != "cpu" or weight.dtype is not torch.bfloat16:
        raise ValueError("numbers of another kind")
    if first.size % 32 or weight.numel() % 16 or first.inner % 16:
        raise ValueError("heads or layers of another size")
    if len({(each.heads, each.shared_heads, each.size, each.inner) for each in stack.layers}) > 1:
        raise ValueError("layers that differ")
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
