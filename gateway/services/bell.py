"""Waking those who wait for a change. Every token rings, so it costs a future when somebody waits
and nothing when nobody does; an `anyio.Event` would be made anew each time.
"""

import asyncio


class Bell:
    """Rings for all who wait at that moment. On one event loop."""

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: list[asyncio.Future[bool]] = []

    @property
    def waiting(self) -> int:
        """How many wait now."""
        return len(self._waiters)

    def ring(self) -> None:
        if not self._waiters:
            return
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            _tell(waiter, True)

    async def wait(self, within_s: float | None = None) -> bool:
        """Wait for the next ring; return whether it came `within_s`."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        self._waiters.append(waiter)
        timer = None if within_s is None else loop.call_later(within_s, _tell, waiter, False)
        try:
            return await waiter
        finally:
            if timer is not None:
                timer.cancel()
            if waiter in self._waiters:
                self._waiters.remove(waiter)


def _tell(waiter: asyncio.Future[bool], has_rung: bool) -> None:
    if not waiter.done():
        waiter.set_result(has_rung)
