"""Writes functions for LLVM whose numbers are vectors of 16 float32, stored as bfloat16.

Each is called by every thread of a team with the address of the same task: fields of 64 bits, the
last two of which are how many units there are and, 0 at first, how many of them are taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from llvmlite import ir

Value: TypeAlias = Any
"""An `ir.Value`; llvmlite has no types."""
LANES = 16
VECTOR_BYTES = 2 * LANES
"""Of bfloat16."""

i64, i32, f32 = ir.IntType(64), ir.IntType(32), ir.FloatType()
ints, floats = ir.VectorType(i32, LANES), ir.VectorType(f32, LANES)
shorts = ir.VectorType(ir.IntType(16), LANES)
address = ir.PointerType()
_NAN = 0x7FC0


class _Bfloat(ir.Type):  # type: ignore[misc]
    """LLVM's type, which llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Bfloat)

    def __hash__(self) -> int:
        return hash(_Bfloat)


@dataclass
class Loop:
    """A loop under way: `index` counts, `values` are carried; `following` replaces them."""

    index: Value
    values: list[Value]
    following: list[Value] = field(default_factory=list)


def splat(number: float, type: ir.VectorType = floats) -> ir.Constant:
    """Return a constant in all lanes."""
    return ir.Constant(type, [number] * LANES)


class Writer:
    """Writes one function, with what is common to all of them."""

    def __init__(self, module: ir.Module, name: str, fields: Sequence[str]) -> None:
        """`fields` are those of the task before its last two."""
        self.function = ir.Function(module, ir.FunctionType(ir.VoidType(), [address]), name)
        self.b = ir.IRBuilder(self.function.append_basic_block("entry"))
        task = self.function.args[0]
        places = [
            self.b.gep(task, [i64(index)], source_etype=i64) for index in range(len(fields) + 2)
        ]
        *first, self._units, self._next = places
        self.fields = {
            name: self.b.load(place, typ=i64) for name, place in zip(fields, first, strict=True)
        }

    @contextmanager
    def units(self) -> Iterator[Value]:
        """Write what is done with each unit that this thread takes, and the function's end."""
        b = self.b
        take, work, end = (self.function.append_basic_block(n) for n in ("take", "work", "end"))
        count = b.load(self._units, typ=i64)
        b.branch(take)
        b.position_at_end(take)
        unit = b.atomic_rmw("add", self._next, i64(1), "monotonic")
        b.cbranch(b.icmp_signed("<", unit, count), work, end)
        b.position_at_end(work)
        yield unit
        b.branch(take)
        b.position_at_end(end)
        b.ret_void()

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """Write what is done only where `condition` holds; it carries no value out."""
        b = self.b
        body, after = (self.function.append_basic_block(name) for name in ("when", "after"))
        b.cbranch(condition, body, after)
        b.position_at_end(body)
        yield
        b.branch(after)
        b.position_at_end(after)

    @contextmanager
    def loop(
        self, start: Value, end: Value, step: int, first: Sequence[Value] = ()
    ) -> Iterator[Loop]:
        """Write a loop; after it, `values` are what was carried out of it."""
        b, before = self.b, self.b.block
        head, body, after = (self.function.append_basic_block(n) for n in ("head", "body", "after"))
        b.branch(head)
        b.position_at_end(head)
        index = b.phi(i64)
        loop = Loop(index, [b.phi(value.type) for value in first])
        index.add_incoming(start, before)
        b.cbranch(b.icmp_signed("<", index, end), body, after)
        b.position_at_end(body)
        yield loop
        index.add_incoming(b.add(index, i64(step)), b.block)
        for carried, begun, gone_on in zip(loop.values, first, loop.following, strict=True):
            carried.add_incoming(begun, before)
            carried.add_incoming(gone_on, b.block)
        b.branch(head)
        b.position_at_end(after)

    def at(self, start: Value, *terms: tuple[Value | int, Value | int]) -> Value:
        """Return the address `start` plus a sum of products."""
        for left, right in terms:
            if isinstance(left, int) and isinstance(right, int):
                product = i64(left * right)
            else:
                product = self.b.mul(_whole(left), _whole(right))
            start = self.b.add(start, product)
        return start

    def load(self, place: Value, type: ir.Type, align: int = 4) -> Value:
        return self.b.load(self.b.inttoptr(place, address), typ=type, align=align)

    def load_floats(self, place: Value) -> Value:
        """Return 16 neighbours in bfloat16 as float32."""
        wide = self.b.zext(self.load(place, shorts, 2), ints)
        return self.b.bitcast(self.b.shl(wide, splat(16, ints)), floats)

    def store_floats(self, place: Value, numbers: Value) -> None:
        self.b.store(self.rounded(numbers), self.b.inttoptr(place, address), align=2)

    def rounded(self, numbers: Value) -> Value:
        """Return the nearest bfloat16, the even one of two."""
        b = self.b
        bits = b.bitcast(numbers, ints)
        odd = b.and_(b.lshr(bits, splat(16, ints)), splat(1, ints))
        near = b.lshr(b.add(bits, b.add(odd, splat(0x7FFF, ints))), splat(16, ints))
        is_none = b.fcmp_unordered("uno", numbers, numbers)
        return b.trunc(b.select(is_none, splat(_NAN, ints), near), shorts)

    def halves(self, pairs: Value) -> tuple[Value, Value]:
        """Return the bfloat16 in the low and in the high halves of 32 bits, as float32."""
        b = self.b
        low, high = b.shl(pairs, splat(16, ints)), b.and_(pairs, splat(0xFFFF0000, ints))
        return b.bitcast(low, floats), b.bitcast(high, floats)

    def spread(self, single: Value, lane: int | None = None) -> Value:
        """Return a number, or that in one lane of a vector, in all lanes."""
        vector = single
        if lane is None:
            kind = floats if single.type == f32 else ints
            vector = self.b.insert_element(ir.Constant(kind, ir.Undefined), single, i32(0))
        return self.b.shuffle_vector(vector, vector, splat(lane or 0, ints))

    def fma(self, left: Value, right: Value, added: Value) -> Value:
        return self.call(f"llvm.fma.v{LANES}f32", floats, left, right, added)

    def dot(self, left: Value, right: Value, added: Value) -> Value:
        """Return `added` plus the products of pairs of bfloat16, given as 32 bits, by the one
        instruction that processors with AVX-512 for bfloat16 have for it."""
        pairs = ir.VectorType(_Bfloat(), 2 * LANES)
        name = "llvm.x86.avx512bf16.dpbf16ps.512"
        return self.call(
            name, floats, added, self.b.bitcast(left, pairs), self.b.bitcast(right, pairs)
        )

    def total(self, numbers: Value) -> Value:
        """Return the sum of all lanes."""
        name = f"llvm.vector.reduce.fadd.v{LANES}f32"
        return self.call(name, f32, f32(0.0), numbers, fastmath=("reassoc",))

    def call(
        self, name: str, result: ir.Type, *given: Value, fastmath: Sequence[str] = ()
    ) -> Value:
        known = self.function.module.globals
        function = known.get(name) or ir.Function(
            self.function.module, ir.FunctionType(result, [value.type for value in given]), name
        )
        return self.b.call(function, given, fastmath=fastmath)

    def exp(self, numbers: Value) -> Value:
        """Return e to the power of numbers, those below -87 and above 88 taken for these; within a
        few units in the last place (the polynomial of Cephes' expf)."""
        b = self.b
        for relation, bound in (("<", -87.0), (">", 88.0)):
            beyond = b.fcmp_ordered(relation, numbers, splat(bound))
            numbers = b.select(beyond, splat(bound), numbers)
        twos = self.call(
            f"llvm.rint.v{LANES}f32", floats, b.fmul(numbers, splat(1.4426950408889634))
        )
        rest = self.fma(twos, splat(-0.693359375), numbers)
        rest = self.fma(twos, splat(2.12194440e-4), rest)
        series = splat(1.9875691500e-4)
        for factor in (
            1.3981999507e-3,
            8.3334519073e-3,
            4.1665795894e-2,
            0.16666665459,
            0.50000001201,
        ):
            series = self.fma(series, rest, splat(factor))
        found = self.fma(series, b.fmul(rest, rest), b.fadd(rest, splat(1.0)))
        power = b.shl(b.add(b.fptosi(twos, ints), splat(127, ints)), splat(23, ints))
        return b.fmul(found, b.bitcast(power, floats))


def _whole(number: Value | int) -> Value:
    return i64(number) if isinstance(number, int) else number
