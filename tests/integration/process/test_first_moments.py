"""kill -9 in the moment in which a client sees its stream begin: the stream is known all the same.

Whoever else would write the record down meanwhile is held back for as long as the test likes, so
that chance has no part in it.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest

from tests.integration.disks import fill_up, tiny_disk
from tests.integration.ollama_peer import OllamaPeer, chat_line, chunks
from tests.integration.process.conftest import GatewayProcess, chat
from tests.integration.process.test_kill import ENDS, locked

Serve = Callable[..., GatewayProcess]
Rows = Callable[[str], list[tuple[Any, ...]]]

PATIENT = """
import sys
from gateway.services import streams
streams.COMMIT_WAIT_S = 60.0
sys.argv = ["gateway", "serve"]
from gateway.cli import main
main()
"""
"""A gateway whose `started` waits for its record for longer than any machine takes."""
LOOKS = 50
"""Requests that are answered meanwhile: what is ready to be said is said by then."""


@pytest.fixture
async def talking(ollama_peer: OllamaPeer) -> OllamaPeer:
    """An upstream that says a word, and no end."""
    ollama_peer.add_model("endless")
    ollama_peer.script("endless", chunks([chat_line("a"), asyncio.Event()]))
    return ollama_peer


class Seer:
    """Reads a stream until it has begun; `stream_id` is what it was told then."""

    def __init__(self) -> None:
        self.stream_id = ""
        self.began = anyio.Event()

    async def read(self, client: httpx.AsyncClient) -> None:
        body = chat("ollama/endless", "hi")
        async with client.stream("POST", "/api/v1/stream", json=body) as reply:
            name = ""
            async for line in reply.aiter_lines():
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif name == "started" and line.startswith("data: "):
                    self.stream_id = json.loads(line.removeprefix("data: "))["stream_id"]
                    self.began.set()
                    return


@asynccontextmanager
async def seeing(gateway: GatewayProcess) -> AsyncIterator[tuple[Seer, httpx.AsyncClient]]:
    seer = Seer()
    async with (
        httpx.AsyncClient(
            base_url=gateway.url, timeout=60, trust_env=False, verify=False
        ) as client,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(seer.read, client)
        yield seer, client


async def ends_after_a_start(start: Callable[[], GatewayProcess], rows: Rows) -> dict[str, str]:
    """Return how every stream ended that the next run knows of."""
    await anyio.to_thread.run_sync(start)
    with anyio.fail_after(30):
        while None in (ends := dict(await anyio.to_thread.run_sync(rows, ENDS))).values():
            await anyio.sleep(0.05)
    return ends


async def test_a_stream_that_began_while_the_database_was_locked_is_known_after_kill_9(
    serve: Serve, rows: Rows, environment: dict[str, str], talking: OllamaPeer
) -> None:
    """F40: the opening log alone has it, from before its `started`."""
    start = partial(serve, OLLAMA_HOST=talking.url, GATEWAY_PROVIDERS="ollama")
    gateway = await anyio.to_thread.run_sync(start)
    with locked(environment):
        async with seeing(gateway) as (seer, _):
            await seer.began.wait()
            gateway.kill()
        assert rows(ENDS) == []
    assert await ends_after_a_start(start, rows) == {seer.stream_id: "interrupted"}


async def test_a_stream_that_began_over_a_full_disk_is_known_after_kill_9(
    serve: Serve, rows: Rows, environment: dict[str, str], talking: OllamaPeer, tmp_path: Path
) -> None:
    """F39: where neither the log nor the journal takes it, `started` waits for the commit."""
    with tiny_disk(tmp_path / "disk") as disk:
        start = partial(
            serve,
            OLLAMA_HOST=talking.url,
            GATEWAY_PROVIDERS="ollama",
            GATEWAY_JOURNAL_DIR=str(disk),
        )
        ballast = fill_up(disk)
        patient = partial(start, wrapper=[sys.executable, "-c", PATIENT])
        gateway = await anyio.to_thread.run_sync(patient)
        async with seeing(gateway) as (seer, client):
            with locked(environment):
                await talking.request(path="/api/chat")
                for _ in range(LOOKS):
                    await client.get("/health/live")
                    if seer.began.is_set():
                        gateway.kill()
                        break
            await seer.began.wait()
            gateway.kill()
        ballast.unlink()
        assert await ends_after_a_start(start, rows) == {seer.stream_id: "interrupted"}
