"""Stop strings over a text that arrives in pieces. Pure: knows no tokens."""

from collections.abc import Sequence


class StopMatcher:
    """Lets text through until one of the stop strings appears, which it never lets through.

    Text that may be the beginning of a stop string is `held` back until it is known not to be one.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self.held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Return what may be shown now; `stopped` is set once a stop string was found."""
        if self.stopped:
            return ""
        if not self._stops:
            return text
        pending = self.held + text
        cut = _first_stop(pending, self._stops)
        if cut is not None:
            self.stopped = True
            self.held = ""
            return pending[:cut]
        keep = held_length(pending, self._stops)
        self.held = pending[len(pending) - keep :]
        return pending[: len(pending) - keep]

    def flush(self) -> str:
        """Return the text held back, at the end of the answer."""
        held, self.held = self.held, ""
        return held


def _first_stop(text: str, stops: Sequence[str]) -> int | None:
    found = [index for stop in stops if (index := text.find(stop)) >= 0]
    return min(found, default=None)


def held_length(text: str, stops: Sequence[str]) -> int:
    """Return the length of the longest end of `text` that begins one of the strings."""
    longest = max((len(stop) for stop in stops), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        tail = text[-length:]
        if any(stop.startswith(tail) for stop in stops):
            return length
    return 0
