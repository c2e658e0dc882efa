"""The code of what lies between the products of a decoder's layer, for a few new tokens: norms,
attention over a SlotCache, the gate; and of a list of tasks, done in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from llvmlite import ir

from gateway.engine.weights.tasks import ATTEND, GATE, NORM
from gateway.engine.weights.vectors import (
    LANES,
    VECTOR_BYTES,
    Value,
    Writer,
    address,
    f32,
    floats,
    i32,
    i64,
    ints,
    splat,
)


def write_layer(module: ir.Module, size: int, *, has_head_norm: bool) -> None:
    """Add `norm`, `gate`, `keep` and `attend`, both also as `_wide` (for keys whose tokens lie side
    by side), and `run` for heads of `size` numbers, a multiple of 32."""
    _Norm(module, "norm", NORM).write()
    _Gate(module, "gate", GATE).write()
    for is_wide, end in ((False, ""), (True, "_wide")):
        for kind, name in ((_Keep, "keep"), (_Attend, "attend")):
            kind(module, name + end, size, is_wide=is_wide, has_head_norm=has_head_norm).write()
    _write_run(module)


class _Place(NamedTuple):
    """Of a unit of `keep` and `attend`; the last three are addresses."""

    token: Value
    head: Value
    position: Value
    keys: Value
    values: Value
    given: Value


class _Norm(Writer):
    def write(self) -> None:
        b, fields = self.b, self.fields
        with self.units() as row:
            hidden = self.at(fields["hidden"], (fields["row_bytes"], row))
            added = self.at(fields["added"], (fields["added_bytes"], row))
            output = self.at(fields["output"], (fields["row_bytes"], row))
            with self.loop(i64(0), fields["size"], LANES, [splat(0.0)]) as loop:
                place = self.at(hidden, (loop.index, 2))
                more = self.load_floats(self.at(added, (loop.index, 2)))
                self.store_floats(place, b.fadd(self.load_floats(place), more))
                numbers = self.load_floats(place)
                loop.following.append(self.fma(numbers, numbers, loop.values[0]))
            count = b.sitofp(fields["size"], f32)
            factor = inverse_root(self, loop.values[0], count, fields["eps"])
            with self.loop(i64(0), fields["size"], LANES) as loop:
                numbers = self.load_floats(self.at(hidden, (loop.index, 2)))
                weight = self.load_floats(self.at(fields["weight"], (loop.index, 2)))
                place = self.at(output, (loop.index, 2))
                self.store_floats(place, b.fmul(b.fmul(numbers, factor), weight))


class _Gate(Writer):
    def write(self) -> None:
        b, fields = self.b, self.fields
        with self.units() as part, self.loop(i64(0), fields["rows"], 1) as loop:
            source = self.at(
                fields["input"], (loop.index, fields["input_bytes"]), (part, VECTOR_BYTES)
            )
            gate = self.load_floats(source)
            up = self.load_floats(b.add(source, fields["half_bytes"]))
            divisor = b.fadd(splat(1.0), self.exp(b.fsub(splat(0.0), gate)))
            place = self.at(
                fields["output"], (loop.index, fields["output_bytes"]), (part, VECTOR_BYTES)
            )
            self.store_floats(place, b.fmul(b.fdiv(gate, divisor), up))


class _Heads(Writer):
    """What `keep` and `attend` share: a unit's heads, in the input and in the cache."""

    def __init__(
        self, module: ir.Module, name: str, size: int, *, is_wide: bool, has_head_norm: bool
    ) -> None:
        super().__init__(module, name, ATTEND)
        self._size = size
        self._vectors = range(size // LANES)
        self._is_wide = is_wide
        self._has_head_norm = has_head_norm

    def _place(self, unit: Value) -> _Place:
        b, fields = self.b, self.fields
        token, head = b.udiv(unit, fields["shared"]), b.urem(unit, fields["shared"])
        row = self.load(self.at(fields["rows"], (token, 8)), i64)
        base = self.at(i64(0), (row, fields["row_bytes"]), (head, fields["head_bytes"]))
        return _Place(
            token=token,
            head=head,
            position=self.load(self.at(fields["positions"], (token, 8)), i64),
            keys=b.add(fields["keys"], base),
            values=b.add(fields["values"], base),
            given=self.at(fields["input"], (token, fields["input_bytes"])),
        )

    def _turned(self, place: Value, token: Value, norm: str) -> list[Value]:
        """Return a head, normed where heads are, and turned by its position."""
        b = self.b
        head = self._load_head(place)
        if self._has_head_norm:
            squares = splat(0.0)
            for part in head:
                squares = self.fma(part, part, squares)
            factor = inverse_root(self, squares, f32(float(self._size)), self.fields["eps"])
            weight = self._load_head(self.fields[norm])
            head = [
                b.fmul(b.fmul(part, factor), mine) for part, mine in zip(head, weight, strict=True)
            ]
        cos, sin = (
            self._load_head(self.at(self.fields[name], (token, 2 * self._size)))
            for name in ("cos", "sin")
        )
        half = len(head) // 2
        rolled = head[half:] + head[:half]
        return [
            self.fma(rolled[part], sin[part], b.fmul(head[part], cos[part]))
            for part in self._vectors
        ]

    def _load_head(self, place: Value) -> list[Value]:
        return [self.load_floats(self.at(place, (part, VECTOR_BYTES))) for part in self._vectors]


class _Keep(_Heads):
    def write(self) -> None:
        b, fields = self.b, self.fields
        with self.units() as unit:
            at = self._place(unit)
            queries = b.mul(fields["group"], fields["shared"])
            key = self.at(at.given, (b.add(queries, at.head), 2 * self._size))
            value = self.at(key, (fields["shared"], 2 * self._size))
            place = self.at(at.values, (at.position, 2 * self._size))
            for part in self._vectors:
                offset = i64(part * VECTOR_BYTES)
                self.store_floats(b.add(place, offset), self.load_floats(b.add(value, offset)))
            self._keep_key(at, self._turned(key, at.token, "key_norm"))

    def _keep_key(self, at: _Place, key: Sequence[Value]) -> None:
        b = self.b
        for part, numbers in enumerate(key):
            if not self._is_wide:
                place = self.at(at.keys, (at.position, 2 * self._size), (part, VECTOR_BYTES))
                self.store_floats(place, numbers)
                continue
            rounded = self.rounded(numbers)
            for lane in range(LANES):
                inner = self.fields["inner_bytes"]
                place = self.at(at.keys, (at.position, 2), (inner, part * LANES + lane))
                number = b.extract_element(rounded, i32(lane))
                b.store(number, b.inttoptr(place, address), align=2)


class _Attend(_Heads):
    def write(self) -> None:
        b, fields = self.b, self.fields
        with self.units() as unit:
            at = self._place(unit)
            end = b.add(at.position, i64(1))
            start = self._start(end)
            with self.loop(i64(0), fields["group"], 1) as loop:
                query = b.add(b.mul(at.head, fields["group"]), loop.index)
                place = self.at(at.given, (query, 2 * self._size))
                asking = self._turned(place, at.token, "query_norm")
                found = self._look(asking, at.keys, at.values, start, end)
                place = self.at(
                    fields["output"], (at.token, fields["output_bytes"]), (query, 2 * self._size)
                )
                for part in self._vectors:
                    self.store_floats(self.at(place, (part, VECTOR_BYTES)), found[part])

    def _start(self, end: Value) -> Value:
        """Return the first token that is looked at."""
        b, window = self.b, self.fields["window"]
        start = b.sub(end, window)
        is_cut = b.and_(b.icmp_signed(">", window, i64(0)), b.icmp_signed(">", start, i64(0)))
        return b.select(is_cut, start, i64(0))

    def _look(
        self, query: Sequence[Value], keys: Value, values: Value, start: Value, end: Value
    ) -> list[Value]:
        """Write the loop over 16 tokens at a time, with the softmax so far; return the output."""
        b = self.b
        scale = self.spread(b.bitcast(b.trunc(self.fields["scale"], i32), f32))
        query = [b.fmul(part, scale) for part in query]
        zero = splat(0.0)
        first = b.and_(start, i64(-LANES))
        carried = [splat(-float("inf")), zero, *[zero] * len(query)]
        with self.loop(first, end, LANES, carried) as loop:
            most, weight, *sums = loop.values
            scores, is_seen = self._scores(query, keys, loop.index, start, end)
            highest = self.call(f"llvm.vector.reduce.fmax.v{LANES}f32", f32, scores)
            now_most = self.call(f"llvm.maxnum.v{LANES}f32", floats, most, self.spread(highest))
            shares = b.select(is_seen, self.exp(b.fsub(scores, now_most)), zero)
            faded = self.exp(b.fsub(most, now_most))
            sums = [b.fmul(part, faded) for part in sums]
            for lane in range(LANES):
                share = self.spread(shares, lane)
                value = self._load_head(self._token(values, loop.index, lane, end))
                sums = [self.fma(part, share, mine) for part, mine in zip(value, sums, strict=True)]
            loop.following += [now_most, self.fma(weight, faded, shares), *sums]
        _, weight, *sums = loop.values
        whole = self.spread(self.total(weight))
        return [b.fdiv(part, whole) for part in sums]

    def _token(self, heads: Value, first: Value, lane: int, end: Value) -> Value:
        """Return where a token's head is; beyond `end` the last one, as what was never written, or
        by another sequence, may be no number."""
        b = self.b
        last, token = b.sub(end, i64(1)), b.add(first, i64(lane))
        token = b.select(b.icmp_signed("<", token, end), token, last)
        return self.at(heads, (token, 2 * self._size))

    def _scores(
        self, query: Sequence[Value], keys: Value, first: Value, start: Value, end: Value
    ) -> tuple[Value, Value]:
        """Return the scores of 16 tokens, and which of them are looked at."""
        b = self.b
        scores: Value = splat(0.0)
        for lane in range(LANES) if not self._is_wide else ():
            key = self._load_head(self._token(keys, first, lane, end))
            products: Value = splat(0.0)
            for mine, theirs in zip(query, key, strict=True):
                products = self.fma(mine, theirs, products)
            scores = b.insert_element(scores, self.total(products), i32(lane))
        for index in range(self._size) if self._is_wide else ():
            place = self.at(keys, (first, 2), (self.fields["inner_bytes"], index))
            mine = self.spread(query[index // LANES], index % LANES)
            scores = self.fma(mine, self.load_floats(place), scores)
        lanes = ir.Constant(ints, list(range(LANES)))
        tokens = b.add(self.spread(b.trunc(first, i32)), lanes)
        is_seen = b.and_(
            b.icmp_signed("<", tokens, self.spread(b.trunc(end, i32))),
            b.icmp_signed(">=", tokens, self.spread(b.trunc(start, i32))),
        )
        return b.select(is_seen, scores, splat(-float("inf"))), is_seen


def inverse_root(writer: Writer, squares: Value, count: Value, eps: Value) -> Value:
    """Return 1 / sqrt(mean + eps) in all lanes; `eps` are the bits of a float32 in 64."""
    b = writer.b
    mean = b.fdiv(writer.total(squares), count)
    root = writer.call("llvm.sqrt.f32", f32, b.fadd(mean, b.bitcast(b.trunc(eps, i32), f32)))
    return writer.spread(b.fdiv(f32(1.0), root))


def _write_run(module: ir.Module) -> None:
    """Add the function that each thread of a team calls with a list of pairs of addresses, function
    and task, which ends with zeros: they wait for each other after each."""
    barrier = ir.Function(module, ir.FunctionType(ir.VoidType(), []), "GOMP_barrier")
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [address]), "run")
    entry, head, body, end = (
        function.append_basic_block(name) for name in ("entry", "head", "body", "end")
    )
    b = ir.IRBuilder(entry)
    b.branch(head)
    b.position_at_end(head)
    place = b.phi(address)
    place.add_incoming(function.args[0], entry)
    work = b.load(place, typ=i64)
    b.cbranch(b.icmp_unsigned("==", work, i64(0)), end, body)
    b.position_at_end(body)
    task = b.load(b.gep(place, [i64(1)], source_etype=i64), typ=address)
    kind = ir.FunctionType(ir.VoidType(), [address])
    b.call(b.inttoptr(work, kind.as_pointer()), [task])
    b.call(barrier, [])
    place.add_incoming(b.gep(place, [i64(2)], source_etype=i64), body)
    b.branch(head)
    b.position_at_end(end)
    b.ret_void()
