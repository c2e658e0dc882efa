"""kill -9 at random moments under load, and a database that is locked for ten seconds."""

import random
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import anyio.to_thread
import httpx
import psycopg
import pytest

from tests.integration.ollama_peer import OllamaPeer
from tests.integration.process.conftest import GatewayProcess, chat
from tests.integration.process.stream_load import ANSWER, loaded

Serve = Callable[..., GatewayProcess]
Rows = Callable[[str], list[tuple[Any, ...]]]

FINISHED = 1000
"""Events until when some of the answers are complete."""
RECOVERY_S = 2.0
"""Within which a start has closed what the run before left open."""
ENDS = "SELECT id, end_reason FROM stream_sessions"


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
        slowest_s = 0.0
        # One in five dies while it closes what the one before it left open. At the last the first
        # answers have ended, wherever chance put the others.
        chosen = [moments.choice([0, 20, 90, 300, 600]) for _ in range(times - 1)]
        for events in (*(moments.randint(0, most) for most in chosen), FINISHED):
            async with loaded(gateway) as load:
                await load.until(events)
                gateway.kill()
            open_at_death = {name for name, end in rows(ENDS) if end is None}
            gateway = await start()
            served_at = time.monotonic()
            while None in (ends := dict(rows(ENDS))).values() or not load.accepted <= set(ends):
                assert time.monotonic() - served_at < RECOVERY_S, "left open, or without a record"
                await anyio.sleep(0.01)
            slowest_s = max(slowest_s, time.monotonic() - served_at)
            assert len(rows(ENDS)) == len(ends)
            accepted |= load.accepted
            finished |= load.finished
            assert accepted <= set(ends), "a stream that a client saw begin has no record"
            # Some ended, and died before that came to the database.
            assert {ends[name] for name in open_at_death} <= {"stop", "interrupted"}
            assert {ends[name] for name in load.finished} <= {"stop"}
            assert {ends[name] for name in load.accepted} <= {"stop", "interrupted"}
    sys.stderr.write(f"\n{len(ends)} streams, closed {slowest_s:.2f} s after a start at most\n")
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
                await anyio.sleep(0.05)
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
