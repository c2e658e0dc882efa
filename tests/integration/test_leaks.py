"""Thousands of requests of all kinds, and what is left of them: nothing.

The gateway is whole, with a database on disk and an upstream over HTTP. Its clients and its
upstream are in the same process, so what they keep is measured, too.
"""

import asyncio
import ctypes
import gc
import itertools
import json
import logging
import mmap
import os
import socket
import struct
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import msgspec
import pytest
import uvicorn
from anyio.abc import SocketAttribute, SocketStream

from gateway.bootstrap.lifetime import running
from gateway.bootstrap.server import configure
from gateway.http.server import listen
from gateway.services.gateway import Gateway
from gateway.settings import Settings
from gateway.store import migrate
from tests.integration.ollama_peer import (
    Do,
    Exchange,
    OllamaPeer,
    Script,
    answer,
    chat_line,
    chunks,
    raw,
)

WORKERS = 8
"""Requests at once; each worker goes through all kinds in turn."""
POOLED = 4 * WORKERS
"""Connections, and tasks that have one, that may be open or not: they are kept for a while."""
THREADS = 5
"""Each of the database's connections has one, and they are made when they are needed."""
KEEP_S = 3.0
"""How long ended streams can be read."""


class Levels(msgspec.Struct, frozen=True):
    """What there is of everything that could leak.

    `blocks` are Python's own allocations up to 512 bytes, counted exactly and at no cost: whatever
    is kept is some. `malloc_bytes` are those above it on the event loop's thread, and what C code
    there holds. `rss_bytes` has holes in it, more of them the busier it was.
    """

    fds: int
    tasks: int
    threads: int
    blocks: int
    malloc_bytes: int
    rss_bytes: int


class House:
    """A served gateway, its upstream, and clients of all kinds."""

    def __init__(self, gateway: Gateway, peer: OllamaPeer, port: int) -> None:
        self.gateway = gateway
        self.peer = peer
        self.port = port
        self.kinds: list[Callable[[], Awaitable[None]]] = [
            lambda: self._whole("/api/v1/stream", 200),
            lambda: self._whole("/v1/chat/completions", 200, stream=True),
            lambda: self._whole("/api/v1/generate", 200),
            lambda: self._whole("/v1/chat/completions", 200),
            lambda: self._whole("/api/v1/generate", 400, model=3),
            lambda: self._whole("/api/v1/generate", 404, model="ollama/none"),
            lambda: self._whole("/api/v1/stream", 200, model="ollama/cut"),
            lambda: self._whole("/api/v1/generate", 502, model="ollama/cut"),
            lambda: self._whole("/v1/chat/completions", 503, model="ollama/busy"),
            lambda: self._whole("/nowhere", 404),
            self._leave_before_the_request,
            self._leave_inside_the_request,
            lambda: self._leave_after("/api/v1/generate", 0, model="ollama/silent"),
            lambda: self._leave_after("/api/v1/stream", 1, model="ollama/silent"),
            lambda: self._leave_after("/api/v1/stream", 1, model="ollama/pausing"),
            lambda: self._leave_after("/v1/chat/completions", 1, stream=True),
            self._detach,
            self._resume,
        ]

    async def work(self, count: int) -> None:
        """Do `count` requests, about as many of each kind."""
        todo = iter(range(count))

        async def worker() -> None:
            for number in todo:
                await self.kinds[number % len(self.kinds)]()
                if len(self.peer.requests) > 500:
                    self.peer.requests.clear()  # it remembers each: memory would be full of holes

        async with anyio.create_task_group() as tasks:
            for _ in range(WORKERS):
                tasks.start_soon(worker)

    async def settle(self) -> Levels:
        """Wait until nothing runs, is kept or is to be written; return what there is then."""
        await self.gateway.streams.wait_idle()
        assert await self.gateway.recorder.flush(20)
        self.peer.requests.clear()
        await anyio.sleep(KEEP_S + 0.1)
        await self._whole("/api/v1/stream", 200, detached=True)  # lets go of what was kept
        await self.gateway.streams.wait_idle()
        assert await self.gateway.recorder.flush(20)
        await self._scrape()  # ends wait to be counted, some hundred of them
        self.peer.requests.clear()
        await anyio.wait_all_tasks_blocked()
        self.gateway.decisions.log._known.clear()  # the last 2,000, on purpose
        self.gateway.decisions.log._ended.clear()
        for _ in range(3):
            gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        return Levels(
            fds=len(os.listdir("/proc/self/fd")),
            tasks=len(asyncio.all_tasks()),
            threads=threading.active_count(),
            blocks=sys.getallocatedblocks(),
            malloc_bytes=_malloc_bytes(),
            rss_bytes=_rss_bytes(),
        )

    async def _whole(self, path: str, status: int, **fields: Any) -> None:
        async with self._asked(path, fields) as stream:
            reply = await _read_all(stream)
        assert reply.startswith(b"HTTP/1.1 %d " % status), reply[:200]

    async def _leave_before_the_request(self) -> None:
        async with await anyio.connect_tcp("127.0.0.1", self.port) as stream:
            _reset(stream)

    async def _leave_inside_the_request(self) -> None:
        async with await anyio.connect_tcp("127.0.0.1", self.port) as stream:
            head = b"POST /api/v1/stream HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n"
            await stream.send(head + b"{")
            _reset(stream)

    async def _leave_after(self, path: str, reads: int, **fields: Any) -> None:
        async with self._asked(path, fields) as stream:
            for _ in range(reads):
                await stream.receive()
            _reset(stream)

    async def _detach(self) -> None:
        async with self._asked("/api/v1/streams", {}) as stream:
            assert (await _read_all(stream)).startswith(b"HTTP/1.1 202 ")

    async def _resume(self) -> None:
        """Read a stream in part, and the rest of it by another connection."""
        async with self._asked("/api/v1/stream", {"detached": True}) as stream:
            head = (await stream.receive()).decode()
        found = [line for line in head.splitlines() if line.lower().startswith("x-stream-id")]
        path = f"/api/v1/streams/{found[0].partition(':')[2].strip()}"
        reply = await self._read(path, "Last-Event-ID: 1\r\n")
        assert reply.count(b"event: finished") == 1

    async def _scrape(self) -> None:
        assert (await self._read("/metrics")).startswith(b"HTTP/1.1 200 ")

    async def _read(self, path: str, headers: str = "") -> bytes:
        head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n"
        async with await anyio.connect_tcp("127.0.0.1", self.port) as stream:
            await stream.send(head.encode())
            return await _read_all(stream)

    @asynccontextmanager
    async def _asked(self, path: str, fields: dict[str, Any]) -> AsyncIterator[SocketStream]:
        usual = {"model": "ollama/fine", "messages": [{"role": "user", "content": "hello"}]}
        body = json.dumps(usual | fields).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        async with await anyio.connect_tcp("127.0.0.1", self.port) as stream:
            await stream.send(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            yield stream


def until_left(steps: list[bytes]) -> Script:
    """Return a script that says `steps`, and nothing more until its client leaves."""

    async def play(exchange: Exchange) -> None:
        await chunks([*steps, exchange.seen.closed])(exchange)

    return play


async def _read_all(stream: SocketStream) -> bytes:
    parts = []
    try:
        while True:
            parts.append(await stream.receive())
    except anyio.EndOfStream:
        return b"".join(parts)


def _reset(stream: SocketStream) -> None:
    """Let the connection end by a reset when it is closed."""
    raw_socket = stream.extra(SocketAttribute.raw_socket)
    raw_socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@asynccontextmanager
async def house(folder: Path) -> AsyncIterator[House]:
    settings = Settings(
        providers=("ollama",),
        node="leaks",
        data_dir=folder,
        ollama_host="http://127.0.0.1:9",
        stream_keep_s=KEEP_S,
        stream_detached_s=KEEP_S,
        stall_warn_s=0,  # collecting garbage on purpose is a stall
    )
    migrate.upgrade(settings.resolved_database_url)
    async with OllamaPeer() as peer:
        settings = settings.model_copy(update={"ollama_host": peer.url})
        for name in ("fine", "cut", "busy", "silent", "pausing"):
            peer.add_model(name, answer="one two three four five six seven eight")
        peer.script("cut", raw([b"HTTP/1.1 200 OK\r\n\r\n" + chat_line("a"), Do.RESET]))
        peer.script("busy", answer(503, b'{"error":"server busy"}'))
        peer.script("silent", until_left([]))
        peer.script("pausing", until_left([chat_line("a"), chat_line("b")]))
        with listen("127.0.0.1", 0) as listener:
            async with running(settings) as gateway:
                server = uvicorn.Server(configure(settings, gateway))
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(server.serve, [listener])
                    yield House(gateway, peer, listener.getsockname()[1])
                    server.should_exit = True


class _MallInfo(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def _malloc_bytes() -> int:
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _MallInfo
    info = mallinfo2()
    return int(info.uordblks + info.hblkhd)


def _rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


async def levels(folder: Path, *counts: int) -> list[Levels]:
    """Return what there was after each of so many requests, one after the other."""
    found = []
    logging.disable()  # pytest keeps what is logged
    try:
        async with house(folder) as a_house:
            for count in counts:
                await a_house.work(count)
                found.append(await a_house.settle())
    finally:
        logging.disable(logging.NOTSET)
    for count, level in zip(counts, found, strict=True):
        sys.stderr.write(f"\n{count} requests: {level}")
    return found


def assert_nothing_is_left(before: Levels, after: Levels) -> None:
    assert after.fds <= before.fds + POOLED
    assert after.tasks <= before.tasks + POOLED
    assert after.threads <= before.threads + THREADS


async def test_two_thousand_requests_leave_nothing_behind(tmp_path: Path) -> None:
    found = await levels(tmp_path, 1000, 700, 700, 700)
    assert_nothing_is_left(found[0], found[-1])
    # What requests leave behind grows with each part; what caches and pools keep once (SQLite's
    # pages, a connection more) is in one part or another, so the part that grew least tells.
    # Each kind is some forty requests of a part: three blocks that one kind leaves would show.
    parts = list(itertools.pairwise(found))
    assert min(after.blocks - before.blocks for before, after in parts) < 100
    assert min(after.malloc_bytes - before.malloc_bytes for before, after in parts) < 80 * 1024


@pytest.mark.soak
@pytest.mark.timeout(3600)
async def test_fifty_thousand_requests_leave_nothing_behind(tmp_path: Path) -> None:
    part = 15_000
    found = await levels(tmp_path, 5000, part, part, part)
    assert_nothing_is_left(found[0], found[-1])
    # A block takes some 64 bytes: this is 1 KB for 1,000 requests, of the part that grew least.
    grown = [
        (after.blocks - before.blocks) * 64 + after.malloc_bytes - before.malloc_bytes
        for before, after in itertools.pairwise(found)
    ]
    assert min(grown) < part / 1000 * 1024
    assert found[-1].rss_bytes - found[0].rss_bytes < 4 * 2**20
