"""The code of products of few tokens with weights packed by oneDNN, as LLVM is given it.

oneDNN keeps blocks of 64 outputs, each padded with zeros to a multiple of 32 inputs. In a block the
64 pairs of weights for two neighbouring inputs lie side by side. A pair is 32 bits, the weight of
the even input in the low half, and a bfloat16 is the high half of a float32: so 16 outputs are one
vector, and a shift and a mask make numbers of it.
"""

from __future__ import annotations

from llvmlite import ir

BLOCK = 64
"""Outputs of a block."""
PAD = 32
"""Inputs are padded to a multiple of this."""
FIELDS = (
    "input", "weight", "bias", "output", "pairs", "blocks", "block_bytes", "bias_step", "next"
)  # fmt: skip
"""Of a task, 64 bits each. `input` [rows, 2 * pairs] and `output` [rows, 64 * blocks] are addresses
of bfloat16, `bias` of float32: 64 for each block, `bias_step` bytes apart. `next` is 0: in it the
threads count which blocks are taken."""

_LANES = 16
_PARTS = BLOCK // _LANES
_i64, _i32, _i16, _f32 = ir.IntType(64), ir.IntType(32), ir.IntType(16), ir.FloatType()
_ints, _floats = ir.VectorType(_i32, _LANES), ir.VectorType(_f32, _LANES)
_shorts = ir.VectorType(_i16, _LANES)
_address = ir.PointerType()
_NAN = 0x7FC0


def name_of(rows: int) -> str:
    """Return the name of the function for so many tokens."""
    return f"multiply_{rows}"


def build(most_rows: int) -> str:
    """Return a module in LLVM's language: functions for 1 to `most_rows` tokens. Each is called by
    every thread of a team with the address of the same task, and does blocks until none is left."""
    module = ir.Module("gemv")
    fma = ir.Function(module, ir.FunctionType(_floats, [_floats] * 3), f"llvm.fma.v{_LANES}f32")
    for rows in range(1, most_rows + 1):
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), [_address]), name_of(rows))
        _Writer(function, rows, fma).write()
    return str(module)


class _Writer:
    def __init__(self, function: ir.Function, rows: int, fma: ir.Function) -> None:
        self._function = function
        self._rows = rows
        self._b = ir.IRBuilder(function.append_basic_block("entry"))
        self._fma = fma

    def write(self) -> None:
        b, function = self._b, self._function
        task = function.args[0]
        self._fields = {
            name: b.load(b.gep(task, [_i64(index)], source_etype=_i64), typ=_i64)
            for index, name in enumerate(FIELDS[:-1])
        }
        counter = b.gep(task, [_i64(len(FIELDS) - 1)], source_etype=_i64)
        take, work, end = (function.append_basic_block(name) for name in ("take", "work", "end"))
        b.branch(take)
        b.position_at_end(take)
        block = b.atomic_rmw("add", counter, _i64(1), "monotonic")
        b.cbranch(b.icmp_signed("<", block, self._fields["blocks"]), work, end)
        b.position_at_end(work)
        self._store(block, self._multiply(block))
        b.branch(take)
        b.position_at_end(end)
        b.ret_void()

    def _multiply(self, block: ir.Value) -> list[list[ir.Value]]:
        """Write the loop over the pairs of inputs; return the sums of each row, part by part."""
        b, fields = self._b, self._fields
        weights = b.add(fields["weight"], b.mul(block, fields["block_bytes"]))
        bias = b.add(fields["bias"], b.mul(block, fields["bias_step"]))
        first = [self._load(bias, 4 * _LANES * part, _floats) for part in range(_PARTS)]
        before, loop = b.block, self._function.append_basic_block("pairs")
        after = self._function.append_basic_block("sums")
        b.branch(loop)
        b.position_at_end(loop)
        pair = b.phi(_i64)
        pair.add_incoming(_i64(0), before)
        sums = [[b.phi(_floats) for _ in range(_PARTS)] for _ in range(self._rows)]
        evens, odds = zip(*(self._inputs(pair, row) for row in range(self._rows)), strict=True)
        place = b.add(weights, b.mul(pair, _i64(4 * BLOCK)))
        following: list[list[ir.Value]] = [[] for _ in sums]
        for part in range(_PARTS):
            even, odd = self._halves(self._load(place, 4 * _LANES * part, _ints))
            for row, mine in enumerate(sums):
                found = b.call(self._fma, [even, evens[row], mine[part]])
                following[row].append(b.call(self._fma, [odd, odds[row], found]))
        following_pair = b.add(pair, _i64(1))
        b.cbranch(b.icmp_signed("<", following_pair, fields["pairs"]), loop, after)
        pair.add_incoming(following_pair, loop)
        for mine, theirs in zip(sums, following, strict=True):
            for part in range(_PARTS):
                mine[part].add_incoming(first[part], before)
                mine[part].add_incoming(theirs[part], loop)
        b.position_at_end(after)
        return following

    def _inputs(self, pair: ir.Value, row: int) -> tuple[ir.Value, ir.Value]:
        """Return a row's two inputs of a pair, each in all lanes."""
        b = self._b
        start = b.add(self._fields["input"], b.mul(self._fields["pairs"], _i64(4 * row)))
        both = b.load(b.inttoptr(b.add(start, b.mul(pair, _i64(4))), _address), typ=_i32, align=4)
        single = b.insert_element(ir.Constant(_ints, ir.Undefined), both, _i32(0))
        first = ir.Constant(ir.VectorType(_i32, _LANES), [0] * _LANES)
        return self._halves(b.shuffle_vector(single, single, first))

    def _halves(self, pairs: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Return what is in the low and in the high halves, as float32."""
        b = self._b
        low, high = b.shl(pairs, _all(16)), b.and_(pairs, _all(0xFFFF0000))
        return b.bitcast(low, _floats), b.bitcast(high, _floats)

    def _store(self, block: ir.Value, sums: list[list[ir.Value]]) -> None:
        b, fields = self._b, self._fields
        for row, mine in enumerate(sums):
            place = b.add(b.mul(fields["blocks"], _i64(row)), block)
            start = b.add(fields["output"], b.mul(place, _i64(2 * BLOCK)))
            for part, number in enumerate(mine):
                address = b.inttoptr(b.add(start, _i64(2 * _LANES * part)), _address)
                b.store(self._rounded(number), address, align=2)

    def _rounded(self, numbers: ir.Value) -> ir.Value:
        """Return the nearest bfloat16, the even one of two."""
        b = self._b
        bits = b.bitcast(numbers, _ints)
        odd = b.and_(b.lshr(bits, _all(16)), _all(1))
        near = b.lshr(b.add(bits, b.add(odd, _all(0x7FFF))), _all(16))
        return b.trunc(
            b.select(b.fcmp_unordered("uno", numbers, numbers), _all(_NAN), near), _shorts
        )

    def _load(self, start: ir.Value, offset: int, type: ir.Type) -> ir.Value:
        b = self._b
        return b.load(b.inttoptr(b.add(start, _i64(offset)), _address), typ=type, align=4)


def _all(number: int) -> ir.Constant:
    return ir.Constant(_ints, [number] * _LANES)
