"""The loads of `bench.gateway`: closed loops of answers in one piece, of streams that come at once,
and of streams at a model's pace."""

import asyncio
import time
from collections.abc import Iterator
from typing import Literal, NamedTuple

from bench.load import Connection, Requests, Route, Tally, connect
from bench.ollama_wire import Ask
from bench.processes import Failed

Kind = Literal["piece", "burst", "paced"]
KINDS: tuple[Kind, ...] = ("paced", "piece", "burst")
"""In the order of the loads: what memory paced streams take is not what bursts left behind."""
TOKENS: dict[Kind, int] = {"piece": 20, "burst": 100, "paced": 32}
SECONDS: dict[Kind, float] = {"piece": 1.5, "burst": 1.5, "paced": 3.0}
TOKEN_MS = 20
MOST_TOKENS_PER_S = 10_000
"""Of all paced streams together: where there are more of them, each is slower."""
MOST_LOST = 50
CONNECT_AT_ONCE = 100


class Cell(NamedTuple):
    """One load: so many connections, each asking for one answer after the other."""

    kind: Kind
    connections: int

    @property
    def ask(self) -> Ask:
        return Ask(TOKENS[self.kind], self.interval_ms)

    @property
    def interval_ms(self) -> int:
        if self.kind != "paced":
            return 0
        return max(TOKEN_MS, self.connections * 1000 // MOST_TOKENS_PER_S)

    @property
    def answer_s(self) -> float:
        """What one answer takes at the mock."""
        return self.interval_ms * TOKENS[self.kind] / 1000

    @property
    def seconds(self) -> float:
        """For so long new requests begin: all streams are open for at least an answer's time."""
        return max(SECONDS[self.kind], 2 * self.answer_s)


class Load:
    """One cell's connections to a server."""

    def __init__(self, cell: Cell, route: Route, nonces: Iterator[int]) -> None:
        self._cell = cell
        self._url = route.url
        self._requests = Requests(route, cell.ask, stream=cell.kind != "piece", nonces=nonces)
        self._connections: list[Connection] = []
        self._busy = 0
        self._until = 0.0
        self._over = asyncio.Event()
        self.tally = Tally()

    async def open(self) -> None:
        """Connect all. Raises OSError."""
        left = self._cell.connections
        while left:
            together = min(left, CONNECT_AT_ONCE)
            self._connections += await asyncio.gather(
                *(connect(self._url, self._make) for _ in range(together))
            )
            left -= together

    async def drive(self, seconds: float) -> float:
        """Ask for so long and wait for the answers; return the seconds until the last. Raises
        Failed when too many were lost."""
        loop = asyncio.get_running_loop()
        began = time.perf_counter()
        self._until = began + seconds
        self._busy = len(self._connections)
        for place, connection in enumerate(self._connections):
            # Paced streams begin spread over one answer, so that requests come evenly.
            delay = place / self._busy * self._cell.answer_s
            loop.call_later(delay, self._begin, connection)
        await self._over.wait()
        if self.tally.lost >= MOST_LOST or not self.tally.answers:
            raise Failed(f"{self.tally.lost} answers lost, the first: {self.tally.first_loss}")
        return time.perf_counter() - began

    def close(self) -> None:
        """End the connections, and what is on them."""
        for connection in self._connections:
            if connection.is_open:
                connection.reset()

    def _make(self) -> Connection:
        return Connection(self._requests, self.tally, self._go_on)

    def _begin(self, connection: Connection) -> None:
        if connection.is_open:
            connection.send()
        else:
            self.tally.lose("the server closed a connection that was not used yet")
            self._rest()

    def _go_on(self, connection: Connection) -> None:
        if self.tally.lost >= MOST_LOST:
            self._over.set()
        elif connection.is_open and time.perf_counter() < self._until:
            connection.send()
        else:
            self._rest()

    def _rest(self) -> None:
        self._busy -= 1
        if not self._busy:
            self._over.set()
