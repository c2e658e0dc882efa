"""Clients that stream from a gateway without a pause, and what each was told."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import httpx

from tests.integration.process.conftest import GatewayProcess, chat

CLIENTS = 20
ANSWER = " ".join(f"word{number}" for number in range(15))
"""What the Ollama peer is to say."""


class Load:
    """Clients that stream without a pause until `is_over`, and what each was told."""

    def __init__(self) -> None:
        self.accepted: set[str] = set()
        self.finished: set[str] = set()
        self.events = 0
        self.is_over = False
        self._progress = anyio.Event()

    async def run(self, client: httpx.AsyncClient) -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(CLIENTS):
                tasks.start_soon(self._stream_until_cut, client)

    async def until(self, events: int) -> None:
        while self.events < events:
            await self._progress.wait()

    async def _stream_until_cut(self, client: httpx.AsyncClient) -> None:
        try:
            while not self.is_over:
                await self._stream(client)
        except httpx.TransportError:
            return  # killed

    async def _stream(self, client: httpx.AsyncClient) -> None:
        name, stream_id = "", ""
        body = chat("ollama/llama3.2", "hi")
        async with client.stream("POST", "/api/v1/stream", json=body) as reply:
            assert reply.status_code == 200
            async for line in reply.aiter_lines():
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                    self._count()
                elif name == "started" and line.startswith("data: "):
                    stream_id = json.loads(line.removeprefix("data: "))["stream_id"]
                    self.accepted.add(stream_id)
        assert name == "finished"
        self.finished.add(stream_id)

    def _count(self) -> None:
        self.events += 1
        progress, self._progress = self._progress, anyio.Event()
        progress.set()


@asynccontextmanager
async def loaded(gateway: GatewayProcess) -> AsyncIterator[Load]:
    load = Load()
    limits = httpx.Limits(max_connections=None)
    async with (
        httpx.AsyncClient(
            base_url=gateway.url, timeout=60, trust_env=False, verify=False, limits=limits
        ) as client,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(load.run, client)
        yield load
