"""kill -9 at random moments under load, and a database that is locked for ten seconds."""

import json
import random
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import psycopg
import pytest

from tests.integration.ollama_peer import OllamaPeer
from tests.integration.process.conftest import GatewayProcess, chat

Serve = Callable[..., GatewayProcess]
Rows = Callable[[str], list[tuple[Any, ...]]]

CLIENTS = 20
FINISHED = 1000
"""Events until when some of the answers are complete."""
ANSWER = " ".join(f"word{number}" for number in range(15))
ENDS = "SELECT id, end_reason FROM stream_sessions"


class Load:
    """Clients that stream without a pause, and what each was told."""

    def __init__(self) -> None:
        self.accepted: set[str] = set()
        self.finished: set[str] = set()
        self.events = 0
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
            while True:
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


async def kill_again_and_again(
    serve: Serve, rows: Rows, times: int, seed: int, **settings: str
) -> None:
    """Kill gateways under load; after each next start every stream must have its one end."""
    moments = random.Random(seed)
    async with OllamaPeer(token_delay_s=0.002) as peer:
        peer.add_model("llama3.2", answer=ANSWER)
        settings |= {"OLLAMA_HOST": peer.url, "GATEWAY_PROVIDERS": "ollama"}
        start = lambda: anyio.to_thread.run_sync(lambda: serve(**settings))  # noqa: E731
        gateway = await start()
        accepted: set[str] = set()
        finished: set[str] = set()
        # At the last the first answers have ended, wherever chance put the others.
        for events in (*(moments.randint(1, 600) for _ in range(times - 1)), FINISHED):
            async with loaded(gateway) as load:
                await load.until(events)
                gateway.kill()
            open_at_death = {name for name, end in rows(ENDS) if end is None}
            gateway = await start()
            ends = dict(rows(ENDS))
            assert len(rows(ENDS)) == len(ends)
            accepted |= load.accepted
            finished |= load.finished
            assert accepted <= set(ends), "a stream that a client saw begin has no record"
            assert None not in ends.values(), "the start left an orphan"
            # Some ended, and died before that came to the database.
            assert {ends[name] for name in open_at_death} <= {"stop", "interrupted"}
            assert {ends[name] for name in load.finished} <= {"stop"}
            assert {ends[name] for name in load.accepted} <= {"stop", "interrupted"}
    counted = Counter(ends.values())
    assert set(counted) <= {"stop", "interrupted"}
    assert counted["interrupted"] > 0
    assert finished


@pytest.mark.timeout(300)
async def test_kill_9_at_random_moments_leaves_one_end_for_every_stream_on_sqlite(
    serve: Serve, rows: Rows
) -> None:
    await kill_again_and_again(serve, rows, times=10, seed=1)


@pytest.mark.timeout(300)
async def test_kill_9_at_random_moments_leaves_one_end_for_every_stream_on_postgresql(
    serve: Serve, postgres_url: str
) -> None:
    def rows(query: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(postgres_url) as connection:
            return connection.execute(query.encode()).fetchall()

    await kill_again_and_again(serve, rows, times=3, seed=2, GATEWAY_DATABASE_URL=postgres_url)


async def test_kill_9_leaves_what_the_stream_had_used_when_it_was_noted_last(
    serve: Serve, rows: Rows
) -> None:
    used = "SELECT completion_tokens FROM stream_sessions"
    async with OllamaPeer(token_delay_s=0.02) as peer:
        peer.add_model("llama3.2", answer=ANSWER * 200)
        settings = {"OLLAMA_HOST": peer.url, "GATEWAY_PROVIDERS": "ollama"}
        start = lambda: anyio.to_thread.run_sync(lambda: serve(**settings))  # noqa: E731
        gateway = await start()
        seen, noted = 0, None
        async with httpx.AsyncClient(base_url=gateway.url, trust_env=False, verify=False) as client:
            body = chat("ollama/llama3.2", "hi")
            async with client.stream("POST", "/api/v1/stream", json=body) as reply:
                async for line in reply.aiter_lines():
                    seen += line == "event: delta"
                    if line == "event: delta" and (found := rows(used)) and (noted := found[0][0]):
                        break
                gateway.kill()
        await start()
    assert rows("SELECT end_reason FROM stream_sessions") == [("interrupted",)]
    assert rows(used) == [(noted,)]
    assert noted is not None and 0 < noted <= seen


@pytest.mark.soak
@pytest.mark.timeout(3600)
async def test_hundreds_of_kills_leave_one_end_for_every_stream(serve: Serve, rows: Rows) -> None:
    await kill_again_and_again(serve, rows, times=200, seed=3)


async def test_kill_9_while_the_database_is_locked_loses_nothing_that_began(
    serve: Serve, rows: Rows, environment: dict[str, str]
) -> None:
    async with OllamaPeer(token_delay_s=0.002) as peer:
        peer.add_model("llama3.2", answer=ANSWER)
        settings = {"OLLAMA_HOST": peer.url, "GATEWAY_PROVIDERS": "ollama"}
        start = lambda: anyio.to_thread.run_sync(lambda: serve(**settings))  # noqa: E731
        gateway = await start()
        with locked(environment):
            async with loaded(gateway) as load:
                await load.until(1500)
                gateway.kill()
            assert rows(ENDS) == []
        await start()
        ends = dict(rows(ENDS))
    assert load.accepted <= set(ends)
    assert None not in ends.values()
    assert load.finished
    assert Counter(ends[name] for name in load.finished)["stop"] > 0


async def test_ten_seconds_of_a_locked_database_are_told_and_cost_no_stream(
    serve: Serve, rows: Rows, environment: dict[str, str]
) -> None:
    async with OllamaPeer() as peer:
        peer.add_model("llama3.2", answer=ANSWER)
        settings = {"OLLAMA_HOST": peer.url, "GATEWAY_PROVIDERS": "ollama"}
        gateway = await anyio.to_thread.run_sync(lambda: serve(**settings))
        async with httpx.AsyncClient(
            base_url=gateway.url, timeout=30, trust_env=False, verify=False
        ) as client:
            told, count = {"status": "ready"}, 0
            with locked(environment):
                locked_until = time.monotonic() + 10
                while time.monotonic() < locked_until:
                    reply = await client.post(
                        "/api/v1/generate", json=chat("ollama/llama3.2", "hi")
                    )
                    assert reply.status_code == 200
                    count += 1
                    told = (await client.get("/health/ready")).json()
            assert told["status"] == "unready"
            assert told["reasons"] == ["database_unavailable"]
            assert told["records"]["spooled"] > 0 and told["records"]["lost"] == 0
            while told["status"] != "ready" or told["records"]["journal_bytes"]:
                told = (await client.get("/health/ready")).json()
        gateway.terminate()
        assert await anyio.to_thread.run_sync(gateway.wait) == 0
    assert rows("SELECT end_reason, count(*) FROM stream_sessions GROUP BY 1") == [("stop", count)]
    assert told["records"]["replayed"] == told["records"]["spooled"]


@contextmanager
def locked(environment: dict[str, str]) -> Iterator[None]:
    """Hold the gateway's SQLite file, as a backup or another program may."""
    file = Path(environment["GATEWAY_DATA_DIR"]) / "gateway.db"
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")
