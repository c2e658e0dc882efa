"""Carries events from a worker thread to readers on the event loop: bounded, one hop a step."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import anyio

from gateway.core.events import Event


class LoopEvent:
    """Is set once, in any thread, and waited for on the event loop that it was made on."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = anyio.Event()

    def set(self) -> None:
        """Wake who waits; harmless when the loop is already closed."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self) -> None:
        await self._event.wait()


class Channel:
    """From the worker to one reader. The worker asks `is_full` and leaves a slow reader's sequence
    alone until there is room; events, an error and the release arrive in order."""

    def __init__(self, *, limit: int, on_room: Callable[[], None]) -> None:
        self._limit = limit
        self._on_room = on_room
        self._sent = 0
        self._taken = 0
        self._events: deque[Event] = deque()
        self._error: Exception | None = None
        self._arrived = anyio.Event()
        self._released = anyio.Event()

    # Worker's side. Counters are written by one side each, so reading them needs no lock.

    @property
    def is_full(self) -> bool:
        return self._sent - self._taken >= self._limit

    def count_sent(self, events: int) -> None:
        self._sent += events

    # Event loop's side.

    async def take(self) -> list[Event]:
        """Return all events that are there, waiting for the first; raises the worker's error.

        An empty list means that the worker let go of the sequence and nothing is left.
        """
        while not self._events:
            if self._error is not None:
                raise self._error
            if self._released.is_set():
                return []
            await self._arrived.wait()
            self._arrived = anyio.Event()
        events = list(self._events)
        self._events.clear()
        # Count first and look after: the worker goes to sleep on what it sees, and it may have
        # seen the channel full at any moment up to now.
        self._taken += len(events)
        if self._sent - self._taken + len(events) >= self._limit:
            self._on_room()
        return events

    async def wait_released(self) -> None:
        """Wait until the worker has let go of the sequence."""
        await self._released.wait()

    def deliver(self, events: list[Event], error: Exception | None, released: bool) -> None:
        self._events.extend(events)
        self._error = self._error or error
        if released:
            self._released.set()
        self._arrived.set()


class Outbox:
    """Gathers what one step of the worker has to say and sends it to the loop in one call."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._mail: list[tuple[Channel, list[Event], Exception | None, bool]] = []
        # Two threads post: the worker, and whoever closes a scheduler whose worker is dead.
        self._lock = threading.Lock()

    def post(
        self,
        channel: Channel,
        events: list[Event],
        *,
        error: Exception | None = None,
        released: bool = False,
    ) -> None:
        channel.count_sent(len(events))
        with self._lock:
            self._mail.append((channel, events, error, released))

    def flush(self) -> None:
        """Send everything posted; harmless when the loop is already closed."""
        with self._lock:
            mail, self._mail = self._mail, []
        if mail and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_deliver, mail)


def _deliver(mail: list[tuple[Channel, list[Event], Exception | None, bool]]) -> None:
    for channel, events, error, released in mail:
        channel.deliver(events, error, released)
