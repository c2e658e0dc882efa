"""An alarm on the event loop: rings at the earliest time that it was set to."""

from collections.abc import Awaitable, Callable

import anyio
from anyio.abc import TaskGroup


class Alarm:
    """Set it as often as you like: at most one timer runs that matters."""

    def __init__(
        self,
        ring: Callable[[], None],
        task_group: TaskGroup,
        *,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._ring = ring
        self._tasks = task_group
        self._clock = clock
        self._sleep = sleep
        self._at: float | None = None
        self._scope = anyio.CancelScope()

    def set(self, at: float) -> None:
        """Ring at `at`, unless it rings before that anyway."""
        if self._at is None or at < self._at:
            self._scope.cancel()
            self._at, self._scope = at, anyio.CancelScope()
            self._tasks.start_soon(self._run, at, self._scope, name="alarm")

    def cancel(self) -> None:
        """Do not ring any more."""
        self._at = None
        self._scope.cancel()

    async def _run(self, at: float, scope: anyio.CancelScope) -> None:
        with scope:
            while (left := at - self._clock()) > 0:
                await self._sleep(left)
            self._at = None
            self._ring()
