"""The code of products of few tokens with weights packed by oneDNN.

oneDNN keeps blocks of 64 outputs, each padded with zeros to a multiple of 32 inputs. In a block the
64 pairs of weights for two neighbouring inputs lie side by side. A pair is 32 bits, the weight of
the even input in the low half, and a bfloat16 is the high half of a float32: so 16 outputs are one
vector, and a shift and a mask make numbers of it.
"""

from __future__ import annotations

from llvmlite import ir

from gateway.engine.weights.tasks import PRODUCT
from gateway.engine.weights.vectors import (
    LANES,
    VECTOR_BYTES,
    Value,
    Writer,
    floats,
    i32,
    i64,
    ints,
)

BLOCK = 64
"""Outputs of a block: a unit of work."""
PAD = 32
"""Inputs are padded to a multiple of this."""
NAME = "multiply"
_PARTS = BLOCK // LANES


def most_tile(*, has_dot: bool) -> int:
    """Return how many rows have room for their sums in the registers of a processor: of 32 vectors,
    beside those of weights and inputs."""
    return 6 if has_dot else 4


def write_product(module: ir.Module, *, has_dot: bool) -> None:
    """Add the function `NAME`; `has_dot` tells whether the processor multiplies pairs of bfloat16
    by one instruction, else it is done in float32."""
    _Product(module, has_dot=has_dot).write()


class _Product(Writer):
    def __init__(self, module: ir.Module, *, has_dot: bool) -> None:
        super().__init__(module, NAME, PRODUCT)
        self._has_dot = has_dot

    def write(self) -> None:
        b, rows, tile = self.b, self.fields["rows"], self.fields["tile"]
        with self.units() as block:
            tiles = b.sdiv(b.sub(b.add(rows, tile), i64(1)), tile)
            # After the first tile the block is near: in the second level of the cache.
            with self.loop(i64(0), tiles, 1) as loop:
                first = b.mul(loop.index, tile)
                left = b.sub(rows, first)
                count = b.select(b.icmp_signed("<", left, tile), left, tile)
                for size in range(1, most_tile(has_dot=self._has_dot) + 1):
                    with self.when(b.icmp_signed("==", count, i64(size))):
                        self._write_tile(block, first, size)

    def _write_tile(self, block: Value, first: Value, rows: int) -> None:
        apart = self.fields["output_bytes"]
        start = self.at(self.fields["output"], (block, 2 * BLOCK), (apart, first))
        for row, sums in enumerate(self._sums(block, first, rows)):
            for part, numbers in enumerate(sums):
                place = self.at(start, (apart, row), (part, VECTOR_BYTES))
                self.store_floats(place, numbers)

    def _sums(self, block: Value, first: Value, rows: int) -> list[list[Value]]:
        """Write the loop over the pairs of inputs; return the sums of each row, part by part."""
        fields = self.fields
        weights = self.at(fields["weight"], (block, fields["block_bytes"]))
        inputs = self.at(fields["input"], (self.b.mul(fields["pairs"], first), 4))
        bias = self.at(fields["bias"], (block, fields["bias_step"]))
        start = [self.load(self.at(bias, (part, 4 * LANES)), floats) for part in range(_PARTS)]
        with self.loop(i64(0), fields["pairs"], 1, start * rows) as loop:
            given = [self._given(inputs, loop.index, row) for row in range(rows)]
            place = self.at(weights, (loop.index, 4 * BLOCK))
            parts = [self.load(self.at(place, (part, 4 * LANES)), ints) for part in range(_PARTS)]
            for index, before in enumerate(loop.values):
                row, part = divmod(index, _PARTS)
                loop.following.append(self._added(parts[part], given[row], before))
        return [loop.values[row * _PARTS : (row + 1) * _PARTS] for row in range(rows)]

    def _given(self, inputs: Value, pair: Value, row: int) -> Value:
        """Return a row's two inputs of a pair, in all lanes."""
        place = self.at(inputs, (self.fields["pairs"], 4 * row), (pair, 4))
        return self.spread(self.load(place, i32))

    def _added(self, weights: Value, given: Value, before: Value) -> Value:
        if self._has_dot:
            return self.dot(weights, given, before)
        for weight, mine in zip(self.halves(weights), self.halves(given), strict=True):
            before = self.fma(weight, mine, before)
        return before
