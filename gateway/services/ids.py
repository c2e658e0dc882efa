"""The ids of requests, and of streams and other requests that are recorded."""

import os
from collections.abc import Callable

_RANDOM_BYTES = 8
_DRAWN = 128
"""Ids for which the system is asked at once: a call for each is most of what an id costs."""


class RandomIds:
    """Hexadecimal digits of so many random bytes, which nobody can foretell."""

    def __init__(self, size_bytes: int, draw: Callable[[int], bytes] = os.urandom) -> None:
        self._size_bytes = size_bytes
        self._draw = draw
        self._drawn: list[str] = []

    def make(self) -> str:
        if not self._drawn:
            width = 2 * self._size_bytes
            digits = self._draw(self._size_bytes * _DRAWN).hex()
            self._drawn = [digits[at : at + width] for at in range(0, len(digits), width)]
        return self._drawn.pop()


class RecordIds:
    """Ids of 24 hexadecimal digits: the second in which it was made, and 64 bits that nobody can
    foretell.

    Ids that rise keep the index of a long table short of work: the next row belongs to its end, and
    not to a page of its own that is read, changed and written back.
    """

    def __init__(self, draw: Callable[[int], bytes] = os.urandom) -> None:
        self._random = RandomIds(_RANDOM_BYTES, draw)
        self._second = 0
        self._digits = ""

    def make(self, at: float) -> str:
        """Return a new id of what begins at `at`, Unix seconds."""
        if not self._digits or self._second != int(at):
            self._second = int(at)
            self._digits = f"{self._second:08x}"
        return self._digits + self._random.make()
