"""The code of products of few tokens with weights packed by oneDNN.

They lie in blocks, as `blocks.py` has it. A pair of weights is 32 bits, that of the even input in
the low half, and a bfloat16 is the high half of a float32: so 16 outputs are one vector, and a
shift and a mask make numbers of it.
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

NAME = "multiply"


def most_tile(block: int, *, has_dot: bool) -> int:
    """Return how many rows have room for their sums in the registers of a processor: of 32 vectors,
    beside those of weights and inputs."""
    return (24 if has_dot else 16) * LANES // block


def write_product(module: ir.Module, block: int, *, has_dot: bool) -> None:
    """Add the function `NAME`, for weights in blocks of so many outputs: units of work. `has_dot`
    tells whether the processor multiplies pairs of bfloat16 by one instruction, else it is done in
    float32."""
    _Product(module, block, has_dot=has_dot).write()


class _Product(Writer):
    def __init__(self, module: ir.Module, block: int, *, has_dot: bool) -> None:
        super().__init__(module, NAME, PRODUCT)
        self._block = block
        self._parts = block // LANES
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
                for size in range(1, most_tile(self._block, has_dot=self._has_dot) + 1):
                    with self.when(b.icmp_signed("==", count, i64(size))):
                        self._write_tile(block, first, size)

    def _write_tile(self, block: Value, first: Value, rows: int) -> None:
        apart = self.fields["output_bytes"]
        start = self.at(self.fields["output"], (block, 2 * self._block), (apart, first))
        for row, sums in enumerate(self._sums(block, first, rows)):
            for part, numbers in enumerate(sums):
                place = self.at(start, (apart, row), (part, VECTOR_BYTES))
                self.store_floats(place, numbers)

    def _sums(self, block: Value, first: Value, rows: int) -> list[list[Value]]:
        """Write the loop over the pairs of inputs; return the sums of each row, part by part."""
        fields, all_parts = self.fields, range(self._parts)
        weights = self.at(fields["weight"], (block, fields["block_bytes"]))
        inputs = self.at(fields["input"], (self.b.mul(fields["pairs"], first), 4))
        bias = self.at(fields["bias"], (block, fields["bias_step"]))
        start = [self.load(self.at(bias, (part, 4 * LANES)), floats) for part in all_parts]
        with self.loop(i64(0), fields["pairs"], 1, start * rows) as loop:
            given = [self._given(inputs, loop.index, row) for row in range(rows)]
            place = self.at(weights, (loop.index, 4 * self._block))
            parts = [self.load(self.at(place, (part, 4 * LANES)), ints) for part in all_parts]
            for index, before in enumerate(loop.values):
                row, part = divmod(index, self._parts)
                loop.following.append(self._added(parts[part], given[row], before))
        sums = loop.values
        return [sums[row * self._parts :][: self._parts] for row in range(rows)]

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
