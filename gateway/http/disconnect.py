"""Work that ends when its client leaves. ASGI servers do not cancel handlers by themselves."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import anyio
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope

from gateway.core.turns import Turns

T = TypeVar("T")


CONNECTION = "gateway.connection"
"""Where in the ASGI scope the server of ours puts the Connection."""


class Connection:
    """Tells when a connection is lost, and whether it takes more. It knows no protocol: requests
    and protocols would hold each other, work for the collector."""

    __slots__ = (
        "_resume_reading",
        "_watches",
        "flow_changed",
        "is_full",
        "is_lost",
        "turns",
    )

    def __init__(self, resume_reading: Callable[[], None], turns: Turns) -> None:
        """`resume_reading` has the end of the connection looked for, whatever it sends; `turns` is
        what it shares with the others of its server."""
        self._resume_reading = resume_reading
        self.turns = turns
        self.is_lost = False
        self.is_full = False
        """Whether a send would wait for the client to take what was sent before."""
        self.flow_changed: Callable[[], None] | None = None
        """Is called whenever `is_full` changes."""
        self._watches: tuple[Callable[[], None], ...] = ()

    def watch(self, lost: Callable[[], None]) -> None:
        """Have `lost` called when the connection is lost; at once, if it is."""
        if self.is_lost:
            lost()
            return
        self._watches += (lost,)
        self._resume_reading()

    def unwatch(self, lost: Callable[[], None]) -> None:
        self._watches = tuple([watch for watch in self._watches if watch != lost])

    def set_full(self, is_full: bool) -> None:
        self.is_full = is_full
        if self.flow_changed is not None:
            self.flow_changed()

    def lose(self) -> None:
        self.is_lost = True
        for lost in self._watches:
            lost()


async def unless_disconnected(request: Request, work: Callable[[], Awaitable[T]]) -> T:
    """Return what `work` returns; cancel it and raise ClientDisconnect if the client leaves first.

    The request's body must have been read whole.
    """
    with cancelled_on_disconnect(request.scope, request.receive):
        return await work()
    raise ClientDisconnect


@contextmanager
def cancelled_on_disconnect(scope: Scope, receive: Receive) -> Iterator[anyio.CancelScope]:
    """Cancel what runs in here when the client leaves; whoever looks after it sees no error.

    Where the server tells of lost connections by itself, nothing waits for that: each of many
    thousand silent streams would have a task for it.
    """
    connection: Connection | None = scope.get(CONNECTION)
    with anyio.CancelScope() as work:
        if connection is None:
            watch = asyncio.ensure_future(_cancel_on_disconnect(receive, work))
            try:
                yield work
            finally:
                watch.cancel()
        else:
            connection.watch(work.cancel)
            try:
                yield work
            finally:
                connection.unwatch(work.cancel)


async def _cancel_on_disconnect(receive: Receive, work: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    work.cancel()
