"""Who follows requests through their parts."""

from contextlib import AbstractContextManager
from typing import Protocol

from gateway.core.events import Event
from gateway.core.sessions import SessionClosed, SessionOpened


class StreamTrace(Protocol):
    """Follows one stream. Called by the task that owns it; must not block."""

    def observe(self, event: Event) -> None: ...

    def end(self, closed: SessionClosed) -> None: ...


class Tracer(Protocol):
    """Begins traces: children of the caller's, where he told of one."""

    def stream(self, opened: SessionOpened) -> StreamTrace: ...

    def embedding(self, opened: SessionOpened) -> AbstractContextManager[None]:
        """Follow what is done inside, and the error that leaves it."""
        ...
