"""SIGTERM in the midst of a hundred hot streams and one reader that takes nothing."""

import asyncio
import json
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest

from gateway.bootstrap.server import CLOSE_S
from tests.integration.ollama_peer import Exchange, OllamaPeer, chat_line
from tests.integration.process.conftest import GatewayProcess, Migrate, chat

Rows = Callable[[str], list[tuple[Any, ...]]]

READERS = 100
GRACE_S = 1.0
LOOKS = 50
"""Requests in whose time a gateway that may read does so."""
ASKED = chat("ollama/llama3.2", "go on")
FLOOD = chat("ollama/flood", "go on")


class Talker:
    """Says something for ever, in pieces of `size`."""

    def __init__(self, size: int, pause_s: float) -> None:
        self.said = 0
        self._line = chat_line("x" * size)
        self._pause_s = pause_s

    async def __call__(self, exchange: Exchange) -> None:
        head = [("Content-Type", "application/x-ndjson"), ("Transfer-Encoding", "chunked")]
        await exchange.head(200, head)
        while not exchange.seen.closed.is_set():
            await exchange.write(b"%x\r\n%b\r\n" % (len(self._line), self._line))
            self.said += 1
            await asyncio.sleep(self._pause_s)

    async def until_stuck(self, gateway: GatewayProcess) -> None:
        """Wait until nothing is taken any more, though the gateway has the time for it: all buffers
        on the way are full."""
        before = -1
        async with httpx.AsyncClient(base_url=gateway.url, trust_env=False, verify=False) as client:
            while before != self.said:
                before = self.said
                for _ in range(LOOKS):
                    await client.get("/health/live")


class Readers:
    """Clients that read their streams to the end; `lasts` are the last events of each."""

    def __init__(self, url: str) -> None:
        self.lasts: list[str] = []
        self.begun = 0
        self._url = url

    async def run(self) -> None:
        limits = httpx.Limits(max_connections=None)
        async with (
            httpx.AsyncClient(
                base_url=self._url, timeout=60, trust_env=False, verify=False, limits=limits
            ) as client,
            anyio.create_task_group() as tasks,
        ):
            for _ in range(READERS):
                tasks.start_soon(self._read, client)

    async def until_all_began(self) -> None:
        with anyio.fail_after(60):
            while self.begun < READERS:
                await anyio.sleep(0.01)

    async def _read(self, client: httpx.AsyncClient) -> None:
        last, tail = "", b""
        async with client.stream("POST", "/api/v1/stream", json=ASKED) as reply:
            async for chunk in reply.aiter_raw():
                if not last:
                    self.begun += 1
                last = "begun"
                tail = (tail + chunk)[-4000:]
        name = tail.rpartition(b"event: ")[2].partition(b"\n")[0].decode()
        self.lasts.append(name)


def freeze(port: int) -> socket.socket:
    """Ask for a stream and take nothing of it."""
    frozen = socket.socket()
    frozen.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    frozen.connect(("127.0.0.1", port))
    body = json.dumps(FLOOD).encode()
    head = b"POST /api/v1/stream HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    frozen.sendall(head % len(body) + body)
    return frozen


@pytest.mark.parametrize("is_twice", [False, True], ids=["once", "twice"])
async def test_nobody_waits_for_a_reader_that_takes_nothing(
    environment: dict[str, str],
    tmp_path: Path,
    rows: Rows,
    is_twice: bool,
    migrated: Migrate,
) -> None:
    """F43"""
    log = tmp_path / "log"
    async with OllamaPeer() as peer:
        peer.add_model("llama3.2")
        peer.script("llama3.2", Talker(2000, pause_s=0.005))
        peer.script("flood", flood := Talker(100_000, pause_s=0))
        grace_s = 3600.0 if is_twice else GRACE_S
        chosen = environment | {
            "OLLAMA_HOST": peer.url,
            "GATEWAY_PROVIDERS": "ollama",
            "GATEWAY_DRAIN_GRACE_S": str(grace_s),
        }
        migrated(chosen)
        gateway = await anyio.to_thread.run_sync(start, chosen, log)
        readers = Readers(gateway.url)
        with freeze(int(gateway.url.rpartition(":")[2])):
            async with anyio.create_task_group() as tasks:
                # Before the others: beside them it might be slow and not stuck.
                while not flood.said:
                    await flood.until_stuck(gateway)
                await flood.until_stuck(gateway)
                tasks.start_soon(readers.run)
                await readers.until_all_began()
                gateway.terminate()
                if is_twice:
                    await until_unready(gateway)
                    gateway.terminate()
                begun = time.monotonic()
                assert await anyio.to_thread.run_sync(gateway.wait) == 0
                beyond_s = time.monotonic() - begun - (0 if is_twice else GRACE_S)
    gateway.close()
    sys.stderr.write(f"\nexit {beyond_s:.2f} s after the grace\n")
    assert Counter(readers.lasts) == {"failed": READERS}
    # Else the frozen one holds it for as long as clients have to read their ends: 2 s.
    assert beyond_s < CLOSE_S
    ends = rows("SELECT end_reason, error_code FROM stream_sessions")
    assert Counter(ends) == {("error", "shutting_down"): READERS + 1}


def start(environment: dict[str, str], log: Path) -> GatewayProcess:
    with log.open("wb") as file:
        return GatewayProcess(environment, file)


async def until_unready(gateway: GatewayProcess) -> None:
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False, verify=False) as client:
        while (await client.get("/health/ready")).status_code == 200:
            await anyio.sleep(0.05)
