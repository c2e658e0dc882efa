"""A proxy on loopback that cuts connections after so many bytes of the reply."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import anyio
from anyio.abc import ByteStream, SocketAttribute, SocketStream

CHUNK = 1024


class ChaosProxy:
    """Forwards to `port`; the nth connection is reset after the nth of `cuts` bytes, further ones
    go through."""

    def __init__(self, port: int, cuts: Iterator[int]) -> None:
        self._port = port
        self._cuts = cuts
        self.url = ""
        self.cut_count = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator["ChaosProxy"]:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        self.url = f"http://127.0.0.1:{listener.extra(SocketAttribute.local_port)}"
        async with listener, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, self._serve)
            yield self
            tasks.cancel_scope.cancel()

    async def _serve(self, client: SocketStream) -> None:
        budget = next(self._cuts, None)
        async with (
            client,
            await anyio.connect_tcp("127.0.0.1", self._port) as server,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(_forward, client, server, None)
            if not await _forward(server, client, budget):
                self.cut_count += 1
            tasks.cancel_scope.cancel()


async def _forward(source: ByteStream, target: ByteStream, budget: int | None) -> bool:
    """Forward until an end; False when `budget` bytes were forwarded and the rest was not."""
    try:
        while budget is None or budget > 0:
            data = await source.receive(CHUNK if budget is None else min(CHUNK, budget))
            await target.send(data)
            budget = None if budget is None else budget - len(data)
    except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
        return True
    return False
