"""How many streams and embedding requests each caller has open at once."""

from collections import Counter

from gateway.core.errors import TooManyStreams


class CallerSlots:
    """Counts what each caller has open. Each `take` is followed by one `free`."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()

    def take(self, caller: str, most: int | None) -> None:
        """Count one more; raises TooManyStreams when the caller has `most` already."""
        if most is not None and self._open[caller] >= most:
            raise TooManyStreams(f"This key may have {most} streams at once.")
        self._open[caller] += 1

    def free(self, caller: str) -> None:
        self._open[caller] -= 1
        if not self._open[caller]:
            del self._open[caller]
