"""The turns of one event loop, for those who read or write in them: what comes in the same one can
go together, and how much is done in one is bounded.

An upstream, or a machine that wakes up, may have a large piece for each of many readers at once. To
read all of it, or to encode and send it, takes longer than anybody else should wait.
"""

import asyncio
from collections.abc import Callable

LARGE_BYTES = 4 * 2**10
"""Who has less, as with nearly every token, is not worth the counting."""
TURN_BYTES = 256 * 2**10
"""What is read or written in one turn, and the last of it beyond: some milliseconds."""


class Turns:
    """Numbers the turns in which somebody asks, and shares them among those with large pieces,
    in their order. One callback of the loop for each, however many ask."""

    def __init__(self) -> None:
        self._number = 0
        self._left = TURN_BYTES
        self._waiting: dict[Callable[[], None], None] = {}
        self._is_noticed = False

    def number(self) -> int:
        """Return the number of this turn."""
        if not self._is_noticed:
            self._is_noticed = True
            asyncio.get_running_loop().call_soon(self._begin)
        return self._number

    def admit(self, size: int, later: Callable[[], None]) -> bool:
        """Tell whether so many bytes may be read or written now; else `later` is called in one of
        the next turns, once, and asks again."""
        if self._left <= 0:
            self._waiting[later] = None
            return False
        self._left -= size
        self.number()
        return True

    def _begin(self) -> None:
        """Begin a turn: those who waited go first, the longest waiting of them foremost."""
        self._number += 1
        self._left = TURN_BYTES
        self._is_noticed = False
        while self._waiting and self._left > 0:
            later = next(iter(self._waiting))
            del self._waiting[later]
            later()
