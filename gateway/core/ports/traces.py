"""Who follows requests through their parts."""

from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager
from typing import Protocol

from gateway.core.events import Event
from gateway.core.sessions import SessionClosed, SessionOpened


class StreamTrace(Protocol):
    """Follows one stream. Called by the task that owns it; must not block."""

    def over(self, events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
        """Return the same events, looked at as they pass; closing it closes `events`."""
        ...

    def end(self, closed: SessionClosed) -> None: ...


class Tracer(Protocol):
    """Begins traces: children of the caller's, where he told of one."""

    def stream(self, opened: SessionOpened) -> StreamTrace: ...

    def embedding(self, opened: SessionOpened) -> AbstractContextManager[None]:
        """Follow what is done inside, and the error that leaves it."""
        ...
