"""A clock that only moves when a test turns it, and the sleep that goes by it."""

import anyio


class HandClock:
    """Pass the object itself as `clock` and its `sleep` as `sleep`."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._turned = anyio.Event()

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            await self._turned.wait()

    async def turn(self, seconds: float) -> None:
        """Move on, and let everybody do what is due."""
        self.now += seconds
        turned, self._turned = self._turned, anyio.Event()
        turned.set()
        await anyio.wait_all_tasks_blocked()
