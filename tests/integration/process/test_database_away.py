"""A database, or the disk of the opening log, that goes away under a gateway whose streams run."""

import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import psycopg
import pytest

from tests.integration.disks import fill_up, tiny_disk
from tests.integration.ollama_peer import OllamaPeer
from tests.integration.process.conftest import GatewayProcess
from tests.integration.process.stream_load import ANSWER, Load, loaded

Serve = Callable[..., GatewayProcess]
Rows = Callable[[str], list[tuple[Any, ...]]]

ENDS = "SELECT id, end_reason FROM stream_sessions"
MORE = 600
"""Events in which every client begins some streams and ends some."""


async def until_ready(gateway: GatewayProcess, is_ready: bool) -> dict[str, Any]:
    """Wait until the gateway says so; return what it says of its records."""
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False, verify=False) as client:
        with anyio.fail_after(60):
            while True:
                told = (await client.get("/health/ready")).json()
                if (told["status"] == "ready") is is_ready:
                    return dict(told)
                await anyio.sleep(0.02)


async def until_all_is_stored(gateway: GatewayProcess) -> dict[str, Any]:
    while (told := await until_ready(gateway, True))["records"]["journal_bytes"]:
        await anyio.sleep(0.05)
    return told


def assert_all_is_recorded_once(load: Load, recorded: list[tuple[Any, ...]]) -> None:
    ends = dict(recorded)
    assert len(recorded) == len(ends)
    assert load.accepted <= set(ends)
    assert {ends[name] for name in load.finished} == {"stop"}
    assert Counter(ends.values())[None] == 0


@pytest.mark.timeout(180)
async def test_a_postgresql_stopped_and_started_under_streams_costs_none_and_loses_no_record(
    serve: Serve, mortal_postgres: Any
) -> None:
    """F37"""

    def rows() -> list[tuple[Any, ...]]:
        with psycopg.connect(url) as connection:
            return connection.execute(ENDS).fetchall()

    url = mortal_postgres.get_uri()
    async with OllamaPeer(token_delay_s=0.002) as peer:
        peer.add_model("llama3.2", answer=ANSWER)
        settings = {"OLLAMA_HOST": peer.url, "GATEWAY_PROVIDERS": "ollama"}
        settings["GATEWAY_DATABASE_URL"] = url
        gateway = await anyio.to_thread.run_sync(lambda: serve(**settings))
        async with loaded(gateway) as load:
            for _ in range(2):
                await load.until(load.events + MORE)
                await anyio.to_thread.run_sync(mortal_postgres.stop)
                told = await until_ready(gateway, False)
                assert told["reasons"] == ["database_unavailable"]
                await load.until(load.events + MORE)
                await anyio.to_thread.run_sync(mortal_postgres.start)
                told = await until_all_is_stored(gateway)
            await load.until(load.events + MORE)
            load.is_over = True
        await anyio.to_thread.run_sync(gateway.close)
    assert load.finished == load.accepted
    assert told["records"]["lost"] == 0
    assert told["records"]["spooled"] == told["records"]["replayed"] > 0
    assert_all_is_recorded_once(load, await anyio.to_thread.run_sync(rows))


@pytest.mark.timeout(180)
async def test_a_full_disk_under_the_log_and_kill_9_lose_nothing_that_began(
    serve: Serve, rows: Rows, tmp_path: Path
) -> None:
    """F39: `started` is said once the database has what the log does not take."""
    with tiny_disk(tmp_path / "disk", "64k") as disk:
        async with OllamaPeer(token_delay_s=0.002) as peer:
            peer.add_model("llama3.2", answer=ANSWER)
            settings = {"OLLAMA_HOST": peer.url, "GATEWAY_PROVIDERS": "ollama"}
            settings["GATEWAY_JOURNAL_DIR"] = str(disk)
            gateway = await anyio.to_thread.run_sync(lambda: serve(**settings))
            async with loaded(gateway) as load:
                await load.until(MORE)
                ballast = await anyio.to_thread.run_sync(fill_up, disk)
                await load.until(load.events + 3 * MORE)
                gateway.kill()
            assert load.finished
            ballast.unlink()
            gateway = await anyio.to_thread.run_sync(lambda: serve(**settings))
            await until_all_is_stored(gateway)
            with anyio.fail_after(10):
                while None in (ends := dict(await anyio.to_thread.run_sync(rows, ENDS))).values():
                    await anyio.sleep(0.05)
            assert load.accepted <= set(ends)
            await anyio.to_thread.run_sync(gateway.close)


@pytest.mark.timeout(180)
async def test_a_gateway_frozen_under_streams_loses_its_lease_and_gets_on_once_it_thaws(
    serve: Serve, postgres_url: str, tmp_path: Path
) -> None:
    """F41: what the other one closed stays closed, and what begins after the frost is its own."""

    def rows() -> dict[str, tuple[str, str | None]]:
        with psycopg.connect(postgres_url) as connection:
            found = connection.execute("SELECT id, node, end_reason FROM stream_sessions")
            return {name: (node, end) for name, node, end in found.fetchall()}

    async with OllamaPeer(token_delay_s=0.05) as peer:
        peer.add_model("llama3.2", answer=ANSWER)
        settings = {
            "OLLAMA_HOST": peer.url,
            "GATEWAY_PROVIDERS": "ollama",
            "GATEWAY_DATABASE_URL": postgres_url,
            "GATEWAY_LEASE_S": "2",
        }

        def start(name: str) -> GatewayProcess:
            folder = str(tmp_path / name)
            return serve(GATEWAY_NODE=name, GATEWAY_DATA_DIR=folder, **settings)

        frozen = await anyio.to_thread.run_sync(start, "frozen")
        living = await anyio.to_thread.run_sync(start, "living")
        async with loaded(frozen) as load, loaded(living) as beside:
            await load.until(100)
            with anyio.fail_after(30):
                while len(load.accepted - set(await anyio.to_thread.run_sync(rows))):
                    await anyio.sleep(0.05)
            os.kill(frozen.pid, signal.SIGSTOP)
            try:
                with anyio.fail_after(60):
                    while ("frozen", None) in (
                        before := await anyio.to_thread.run_sync(rows)
                    ).values():
                        await anyio.sleep(0.05)
            finally:
                os.kill(frozen.pid, signal.SIGCONT)
            seen = set(load.accepted)
            with anyio.fail_after(60):
                # Every client of either goes on, with streams that began after the frost, too.
                while not (load.finished - seen and beside.finished):
                    await load.until(load.events + 1)
            load.is_over = beside.is_over = True
        for gateway in (frozen, living):
            await anyio.to_thread.run_sync(gateway.close)
    after = await anyio.to_thread.run_sync(rows)
    interrupted = {name for name, (_, end) in before.items() if end == "interrupted"}
    assert interrupted and {before[name][0] for name in interrupted} == {"frozen"}
    assert {after[name] for name in interrupted} == {("frozen", "interrupted")}
    assert load.accepted | beside.accepted <= set(after)
    assert {after[name] for name in load.finished - seen} == {("frozen", "stop")}
    assert {after[name] for name in beside.finished} == {("living", "stop")}
    assert None not in {end for _, end in after.values()}
