"""Work that ends when its client leaves. ASGI servers do not cancel handlers by themselves."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import anyio
from starlette.requests import ClientDisconnect
from starlette.types import Receive

T = TypeVar("T")


async def unless_disconnected(receive: Receive, work: Callable[[], Awaitable[T]]) -> T:
    """Return what `work` returns; cancel it and raise ClientDisconnect if the client leaves first.

    The request's body must have been read whole.
    """
    with cancelled_on_disconnect(receive):
        return await work()
    raise ClientDisconnect


@contextmanager
def cancelled_on_disconnect(receive: Receive) -> Iterator[anyio.CancelScope]:
    """Cancel what runs in here when the client leaves; whoever looks after it sees no error.

    Every request has this, and a task group around its one small task would cost as much as all
    else that is done here for the request. The task does nothing but wait, and is never awaited.
    """
    with anyio.CancelScope() as scope:
        watch = asyncio.ensure_future(_cancel_on_disconnect(receive, scope))
        try:
            yield scope
        finally:
            watch.cancel()


async def _cancel_on_disconnect(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
