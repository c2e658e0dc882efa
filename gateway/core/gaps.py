"""The gaps between the pieces of one answer, counted in buckets as the pieces pass."""

from bisect import bisect_left

# Source: OpenTelemetry, semantic conventions for generative AI, time per output chunk. Pieces that
# come together, and small models, are faster than its smallest: three bounds are added below it.
GAP_BOUNDS = (
    *(0.0005, 0.002, 0.005),
    *(0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92),
)


class Gaps:
    """How many gaps fell into each bucket of GAP_BOUNDS, the last holding what is above all."""

    __slots__ = ("counts", "total_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(GAP_BOUNDS) + 1)
        self.total_s = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(GAP_BOUNDS, seconds)] += 1
        self.total_s += seconds

    def add_none(self, count: int) -> None:
        """Add gaps of no time: of pieces that came together."""
        self.counts[0] += count
