"""How long others wait while many streams are sent a piece at once: turns of the event loop.

    python -m bench.bursts                       # 200 streams, 20 KB and a word, about a minute
    python -m bench.bursts --streams 1000 --pieces 40

An upstream writes a piece to all streams at once, again and again. Meanwhile somebody asks the
gateway whether it lives, without a pause: what his requests take is what a turn takes.
"""

import argparse
import asyncio
import itertools
import json
import selectors
import socket
import sys
import threading
import time
from typing import cast

import anyio
import anyio.to_thread
import uvloop

from bench import machine, tables
from bench.answers import quantile
from bench.faces import NATIVE
from bench.held import most_streams
from bench.load import Route
from bench.ollama_wire import CHAT, OTHERS, Ask, chat_line, chunk
from bench.proxies import make_gateway

PIECES = {"a word": 6, "20 KB": 20_000}
PAUSE_S = 0.2
OPEN_S = 60.0
READ_BYTES = 2**18


class Upstream(asyncio.Protocol):
    """Begins an answer to whoever asks; `streams` are those that go on."""

    def __init__(self, streams: set[asyncio.Transport]) -> None:
        self._streams = streams

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        path = data.split(b" ", 2)[1].decode()
        if path == "/api/chat":
            self._streams.add(self._transport)
            self._transport.write(CHAT.head + CHAT.first)
        elif path in OTHERS:
            self._transport.write(OTHERS[path])

    def connection_lost(self, exc: Exception | None) -> None:
        self._streams.discard(self._transport)


class Readers(threading.Thread):
    """Takes all that comes to clients, on the second core."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._waiting = selectors.DefaultSelector()
        self.is_over = False
        self.taken = 0

    def add(self, client: socket.socket) -> None:
        self._waiting.register(client, selectors.EVENT_READ)

    def run(self) -> None:
        while not self.is_over:
            for key, _ in self._waiting.select(0.1):
                self.taken += len(cast(socket.socket, key.fileobj).recv(READ_BYTES))


def ask_to_stream(route: Route) -> socket.socket:
    """Open a stream and return its connection once it has begun."""
    host, _, port = route.url.removeprefix("http://").partition(":")
    client = socket.create_connection((host, int(port)), timeout=OPEN_S)
    client.sendall(NATIVE.make_request(route.model, Ask(2, 1), route.headers, stream=True))
    seen = b""
    while b"event: delta" not in seen:
        seen += client.recv(READ_BYTES)
    return client


class Looks(threading.Thread):
    """Asks whether the gateway lives, again and again; `times` are what it took."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        host, _, port = url.removeprefix("http://").partition(":")
        self._client = socket.create_connection((host, int(port)))
        self.times: list[float] = []
        self.is_over = False

    def run(self) -> None:
        while not self.is_over:
            began = time.perf_counter()
            self._client.sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            reply = b""
            while not reply.endswith(b"}"):
                reply += self._client.recv(READ_BYTES)
            self.times.append(time.perf_counter() - began)


async def measure(streams: int, pieces: int, size: int, *, read: bool) -> list[str]:
    """Return the cells of one row."""
    held: set[asyncio.Transport] = set()
    server = await asyncio.get_running_loop().create_server(
        lambda: Upstream(held), "127.0.0.1", 0, backlog=4096
    )
    proxy = make_gateway(NATIVE)(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", 0)
    assert proxy.server is not None
    piece = chunk(json.dumps(chat_line("x" * size)) + "\n")
    readers = Readers()
    clients: list[socket.socket] = []
    try:
        await proxy.server.start()
        for _ in range(streams):
            clients.append(await anyio.to_thread.run_sync(ask_to_stream, proxy.route))
            if read:
                readers.add(clients[-1])
        readers.start()
        looks = Looks(proxy.route.url)
        looks.start()
        for _ in range(pieces):
            for stream in list(held):
                stream.write(piece)
            await asyncio.sleep(PAUSE_S)
        looks.is_over = readers.is_over = True
        await anyio.to_thread.run_sync(looks.join)
        await anyio.to_thread.run_sync(readers.join)
    finally:
        for client in clients:
            client.close()
        await proxy.server.stop()
        server.close()
    slowest = sorted(looks.times)[-pieces:]
    milliseconds = [quantile(slowest, 0.5), max(slowest)]
    return [f"{readers.taken / streams / 1000:.0f}", *(f"{1000 * s:.0f}" for s in milliseconds)]


async def bench(streams: int, pieces: int) -> None:
    head = ["streams", "piece", "read", "KB taken by each", "look p50 of the slowest, ms"]
    rows = []
    for (name, size), read in itertools.product(PIECES.items(), (True, False)):
        tables.say(f"{streams} streams, {name}, {'read' if read else 'not read'} ...")
        cells = await measure(streams, pieces, size, read=read)
        rows.append([str(streams), name, "yes" if read else "no", *cells])
    tables.out(tables.markdown([*head, "longest look, ms"], rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--pieces", type=int, default=20)
    options = parser.parse_args()
    streams = min(options.streams, most_streams())
    machine.pin(1)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(bench(streams, options.pieces))
    tables.out(json.dumps({"machine": machine.describe()}))


if __name__ == "__main__":
    sys.exit(main())
