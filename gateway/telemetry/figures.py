"""Figures as plain data: values in buckets, and families of them under one name."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import repeat
from operator import add
from typing import Literal

import msgspec


class Distribution:
    """How many values fell into each bucket. A bucket holds what is not above its bound; one more
    than there are bounds holds the rest. Not locked: whoever adds does it in one thread."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def add_all(self, values: Sequence[float]) -> None:
        buckets = Counter(map(bisect_left, repeat(self.bounds), values))
        for bucket, count in buckets.items():
            self.counts[bucket] += count
        self.total = sum(values, self.total)

    def merge(self, counts: Sequence[int], total: float) -> None:
        """Add what was counted elsewhere in buckets of the same bounds."""
        self.counts = list(map(add, self.counts, counts))
        self.total += total

    def copy(self) -> "Distribution":
        twin = Distribution(self.bounds)
        twin.counts, twin.total = list(self.counts), self.total
        return twin

    @property
    def count(self) -> int:
        return sum(self.counts)


Row = tuple[tuple[str, ...], float | Distribution]
"""The values of a family's labels, and the figure that belongs to them."""


class Family(msgspec.Struct, frozen=True):
    """All figures of one name. The name of a counter ends with `_total`."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()

    def of(self, rows: Iterable[Row]) -> "Sample":
        return Sample(self, tuple(rows))

    def is_(self, value: float | Distribution) -> "Sample":
        """Return the sample of a family without labels."""
        return Sample(self, (((), value),))


class Sample(msgspec.Struct, frozen=True):
    """What a family showed at one moment; shares nothing with what goes on counting."""

    family: Family
    rows: tuple[Row, ...]
