"""What a load costs at a server, of one round and over rounds."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from bench.cells import Cell
from bench.held import Aborts
from bench.load import Tally

SLOW_S = 15.0
"""A load that takes longer is not repeated."""


@dataclass(frozen=True)
class Costs:
    """Of one load. Without a server there is neither processor time nor memory; without streams
    neither first tokens nor gaps."""

    requests_per_s: float
    tokens_per_s: float
    cpu_us_answer: float | None
    cpu_share: float | None
    """Of one core."""
    p50_ms: float | None
    p99_ms: float | None
    ttft_p50_ms: float | None
    ttft_p99_ms: float | None
    gap_p50_ms: float | None
    gap_p99_ms: float | None
    above_idle_mb: float | None
    """The most resident memory, less that of the warm server without load."""
    stolen: float
    """The share of all cores' time that the host gave to others."""
    answers: int
    lost: int


@dataclass(frozen=True)
class Closing:
    """From a client's reset until the upstream connection is closed, of streams that were."""

    p50_ms: float | None
    p99_ms: float | None
    closed: int
    missed: int


@dataclass(frozen=True)
class Stillness:
    """Of a server that holds streams."""

    idle_mb: float | None
    """Warm and without connections."""
    streams: int
    """Silent ones that were open together."""
    kb_each: float | None
    speaking: Closing
    silent: Closing


@dataclass
class Measured:
    """Of one peer under one load: the rounds that were whole, and why there are no more."""

    rounds: list[Costs] = field(default_factory=list)
    seconds: float = 0.0
    failure: str | None = None

    @property
    def is_done(self) -> bool:
        return self.failure is not None or self.seconds > SLOW_S


@dataclass
class Found:
    """Everything that was measured. A peer that did not run is in `failures` alone."""

    loads: dict[tuple[str, Cell], Measured]
    still: dict[str, Stillness] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def describe(
    tally: Tally, wall_s: float, cpu_s: float | None, above_idle_bytes: int | None, stolen: float
) -> Costs:
    return Costs(
        requests_per_s=tally.answers / wall_s,
        tokens_per_s=tally.tokens / wall_s,
        cpu_us_answer=None if cpu_s is None else cpu_s / tally.answers * 1e6,
        cpu_share=None if cpu_s is None else cpu_s / wall_s,
        p50_ms=percentile_ms(tally.latencies, 50),
        p99_ms=percentile_ms(tally.latencies, 99),
        ttft_p50_ms=percentile_ms(tally.firsts, 50),
        ttft_p99_ms=percentile_ms(tally.firsts, 99),
        gap_p50_ms=percentile_ms(tally.gaps, 50),
        gap_p99_ms=percentile_ms(tally.gaps, 99),
        above_idle_mb=None if above_idle_bytes is None else above_idle_bytes / 1e6,
        stolen=stolen,
        answers=tally.answers,
        lost=tally.lost,
    )


def describe_closing(aborts: Aborts) -> Closing:
    times = aborts.times
    return Closing(percentile_ms(times, 50), percentile_ms(times, 99), len(times), aborts.missed)


def median(rounds: Sequence[Costs]) -> Costs:
    """Return the median of each figure by itself."""
    figures: dict[str, Any] = {
        each.name: _median([getattr(one, each.name) for one in rounds]) for each in fields(Costs)
    }
    return Costs(**figures)


def percentile_ms(times_s: Sequence[float], percent: int) -> float | None:
    """Return the value that so many percent do not exceed; None of nothing."""
    if not times_s:
        return None
    return sorted(times_s)[min(len(times_s) * percent // 100, len(times_s) - 1)] * 1e3


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
