"""Work that ends when its client leaves. ASGI servers do not cancel handlers by themselves."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from gateway.core.errors import GatewayError

T = TypeVar("T")


async def unless_disconnected(receive: Receive, work: Callable[[], Awaitable[T]]) -> T:
    """Return what `work` returns; cancel it and raise ClientDisconnect if the client leaves first.

    The request's body must have been read whole.
    """
    results: list[T] = []
    failure: GatewayError | None = None
    async with anyio.create_task_group() as group:
        group.start_soon(_cancel_on_disconnect, receive, group.cancel_scope)
        try:
            results.append(await work())
        except GatewayError as error:
            failure = error  # raised below, where no task group wraps it
        group.cancel_scope.cancel()
    if failure is not None:
        raise failure
    if not results:
        raise ClientDisconnect
    return results[0]


async def _cancel_on_disconnect(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
