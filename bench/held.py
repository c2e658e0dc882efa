"""Streams that are held: what silent ones take, and how soon one that its client resets is closed
upstream."""

import asyncio
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from bench.load import Connection, Requests, Route, Tally, connect
from bench.ollama_mock import OllamaMock
from bench.ollama_wire import Ask
from bench.processes import Failed

SILENT = Ask(2, interval_ms=3_600_000)
"""One token now and another in an hour."""
SPEAKING = Ask(1000, interval_ms=20)
OPENING_AT_ONCE = 64
ABORTS_AT_ONCE = 10
CLOSE_S = 3.0
SPARE_FILES = 300


def most_streams() -> int:
    """Return how many this process may hold: each is a connection of the client and one of the
    mock, and as many in the gateway."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return (hard - SPARE_FILES) // 2


@dataclass
class Held:
    """Streams that are open."""

    route: Route
    nonces: Iterator[int]
    ask: Ask = SILENT
    connections: list[Connection] = field(default_factory=list)

    async def open(self, streams: int, limit_s: float) -> None:
        """Open so many more; what is not open after `limit_s` is left out. Raises Failed."""
        left = iter(range(streams))

        async def work() -> None:
            for _ in left:
                self.connections.append(await self._open_one())

        workers = [asyncio.ensure_future(work()) for _ in range(OPENING_AT_ONCE)]
        _, late = await asyncio.wait(workers, timeout=limit_s)
        for worker in late:
            worker.cancel()
        for ended in await asyncio.gather(*workers, return_exceptions=True):
            if isinstance(ended, Exception):
                raise ended

    def reset(self) -> None:
        for connection in self.connections:
            if connection.is_open:
                connection.reset()
        self.connections.clear()

    async def _open_one(self) -> Connection:
        tally = Tally()
        spoke: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        requests = Requests(self.route, self.ask, stream=True, nonces=self.nonces)

        def tell(_: Connection) -> None:
            if not spoke.done():
                spoke.set_result(None)

        connection = await connect(
            self.route.url, lambda: Connection(requests, tally, on_end=tell, on_first=tell)
        )
        try:
            connection.send()
            await spoke
        except asyncio.CancelledError:
            connection.reset()
            raise
        if tally.lost:
            raise Failed(tally.first_loss)
        return connection


@dataclass
class Aborts:
    """Seconds from a client's reset until the upstream connection was closed; `missed` are those
    that were not within CLOSE_S."""

    times: list[float] = field(default_factory=list)
    missed: int = 0


async def abort(
    route: Route, mock: OllamaMock, nonces: Iterator[int], ask: Ask, aborts: int
) -> Aborts:
    """Open and reset so many streams, some together. Ends once some are missed. Raises Failed."""
    found = Aborts()
    while len(found.times) < aborts and not found.missed:
        held = Held(route, nonces, ask)
        await held.open(ABORTS_AT_ONCE, CLOSE_S)
        if len(held.connections) < ABORTS_AT_ONCE:
            raise Failed("streams did not begin in time")
        resets = []
        for connection in held.connections:
            cut = mock.expect_cut(connection.nonce)
            resets.append((time.perf_counter(), cut))
            connection.reset()
        await asyncio.wait([cut for _, cut in resets], timeout=CLOSE_S)
        found.times += [cut.result() - reset for reset, cut in resets if cut.done()]
        found.missed += sum(not cut.done() for _, cut in resets)
    return found
