"""RecordIds: the ids of streams and of other requests that are recorded."""

import os
from collections.abc import Callable

_RANDOM_BYTES = 8
_DRAWN = 128
"""Ids for which the system is asked at once: a call for each is most of what an id costs."""


class RecordIds:
    """Ids of 24 hexadecimal digits: the second in which it was made, and 64 bits that nobody can
    foretell.

    Ids that rise keep the index of a long table short of work: the next row belongs to its end, and
    not to a page of its own that is read, changed and written back.
    """

    def __init__(self, draw: Callable[[int], bytes] = os.urandom) -> None:
        self._draw = draw
        self._random: list[str] = []
        self._second = 0
        self._digits = ""

    def make(self, at: float) -> str:
        """Return a new id of what begins at `at`, Unix seconds."""
        if not self._random:
            digits, width = self._draw(_RANDOM_BYTES * _DRAWN).hex(), 2 * _RANDOM_BYTES
            self._random = [digits[place : place + width] for place in range(0, len(digits), width)]
        if not self._digits or self._second != int(at):
            self._second = int(at)
            self._digits = f"{self._second:08x}"
        return self._digits + self._random.pop()
