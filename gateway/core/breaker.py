"""Who is not asked for a while because asking failed. Pure: times are handed in, in seconds."""

from typing import Literal

FAILURES = 10
"""In a row, repetitions included, until nobody asks any more."""
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0

BreakerState = Literal["closed", "open", "half_open"]


class Breaker:
    """Closed while asking works; opens after FAILURES in a row.

    After a pause, twice as long each time, it is half open: one may try (`begin_probe`). A probe
    that fails opens it anew; one that leaves without knowing lets the next one try. Whoever owns
    the breaker drops it at the first success.
    """

    def __init__(self) -> None:
        self.failures = 0
        self.reason = ""
        self._pause_s = FIRST_PAUSE_S
        self._open_until: float | None = None
        self._is_probed = False

    def state(self, now: float) -> BreakerState:
        if self._open_until is None:
            return "closed"
        return "open" if now < self._open_until or self._is_probed else "half_open"

    def wait_s(self, now: float) -> float:
        """Return how long nobody will be let in for sure."""
        return 0.0 if self._open_until is None else max(self._open_until - now, 0.0)

    def begin_probe(self) -> None:
        self._is_probed = True

    def end_probe(self) -> None:
        self._is_probed = False

    def fail(self, now: float, reason: str = "", *, is_probe: bool = False) -> None:
        """Take note of a failure; those that were let in before it opened tell nothing new."""
        self.failures += 1
        self.reason = reason
        if self._open_until is None:
            if self.failures >= FAILURES:
                self._open_until = now + self._pause_s
        elif is_probe:
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
            self._open_until = now + self._pause_s
