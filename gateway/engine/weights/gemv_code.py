"""The code of products of few tokens with weights packed by oneDNN.

oneDNN keeps blocks of 64 outputs, each padded with zeros to a multiple of 32 inputs. In a block the
64 pairs of weights for two neighbouring inputs lie side by side. A pair is 32 bits, the weight of
the even input in the low half, and a bfloat16 is the high half of a float32: so 16 outputs are one
vector, and a shift and a mask make numbers of it.
"""

from __future__ import annotations

from llvmlite import ir

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
FIELDS = ("input", "weight", "bias", "output", "pairs", "block_bytes", "bias_step", "output_bytes")
"""Of a task. `input` [rows, 2 * pairs] and `output` (rows `output_bytes` apart) are addresses of
bfloat16, `bias` of float32: 64 for each block, `bias_step` bytes apart."""

_PARTS = BLOCK // LANES


def name_of(rows: int) -> str:
    """Return the name of the function for so many tokens."""
    return f"multiply_{rows}"


def write_product(module: ir.Module, rows: int) -> None:
    """Add the function for so many tokens."""
    _Product(module, rows).write()


class _Product(Writer):
    def __init__(self, module: ir.Module, rows: int) -> None:
        super().__init__(module, name_of(rows), FIELDS)
        self._rows = range(rows)

    def write(self) -> None:
        fields = self.fields
        with self.units() as block:
            start = self.at(fields["output"], (block, 2 * BLOCK))
            for row, sums in enumerate(self._sums(block)):
                for part, numbers in enumerate(sums):
                    place = self.at(start, (fields["output_bytes"], row), (part, VECTOR_BYTES))
                    self.store_floats(place, numbers)

    def _sums(self, block: Value) -> list[list[Value]]:
        """Write the loop over the pairs of inputs; return the sums of each row, part by part."""
        fields = self.fields
        weights = self.at(fields["weight"], (block, fields["block_bytes"]))
        bias = self.at(fields["bias"], (block, fields["bias_step"]))
        first = [self.load(self.at(bias, (part, 4 * LANES)), floats) for part in range(_PARTS)]
        with self.loop(i64(0), fields["pairs"], 1, first * len(self._rows)) as loop:
            inputs = [self._inputs(loop.index, row) for row in self._rows]
            place = self.at(weights, (loop.index, 4 * BLOCK))
            parts = [
                self.halves(self.load(self.at(place, (part, 4 * LANES)), ints))
                for part in range(_PARTS)
            ]
            for index, before in enumerate(loop.values):
                row, part = divmod(index, _PARTS)
                found = self.fma(parts[part][0], inputs[row][0], before)
                loop.following.append(self.fma(parts[part][1], inputs[row][1], found))
        return [loop.values[row * _PARTS : (row + 1) * _PARTS] for row in self._rows]

    def _inputs(self, pair: Value, row: int) -> tuple[Value, Value]:
        """Return a row's two inputs of a pair, each in all lanes."""
        start = self.at(self.fields["input"], (self.fields["pairs"], 4 * row), (pair, 4))
        return self.halves(self.spread(self.load(start, i32)))
