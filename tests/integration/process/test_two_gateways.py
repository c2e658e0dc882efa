"""Two gateways before one database, and one of them dies for good."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.to_thread
import httpx
import psycopg
import pytest

from tests.integration.ollama_peer import OllamaPeer, chat_line, chunks
from tests.integration.process.conftest import GatewayProcess, chat

Serve = Callable[..., GatewayProcess]
ENDS = "SELECT node, end_reason FROM stream_sessions"


@pytest.mark.timeout(120)
async def test_a_gateway_closes_what_one_that_never_returns_left_open(
    serve: Serve, postgres_url: str, tmp_path: Path
) -> None:
    """F40, F41: and leaves alone what is its own, and what a living one has open."""

    def ends() -> dict[str, str | None]:
        with psycopg.connect(postgres_url) as connection:
            return dict(connection.execute(ENDS).fetchall())

    async with OllamaPeer() as peer:
        peer.add_model("llama3.2")
        never = asyncio.Event()
        peer.script("llama3.2", chunks([chat_line("a"), never]))
        settings = {
            "OLLAMA_HOST": peer.url,
            "GATEWAY_PROVIDERS": "ollama",
            "GATEWAY_DATABASE_URL": postgres_url,
            "GATEWAY_LEASE_S": "2",
        }

        def start(name: str) -> GatewayProcess:
            folder = str(tmp_path / name)
            return serve(GATEWAY_NODE=name, GATEWAY_DATA_DIR=folder, **settings)

        gone = await anyio.to_thread.run_sync(start, "gone")
        living = await anyio.to_thread.run_sync(start, "living")
        body = chat("ollama/llama3.2", "hi")
        async with (
            httpx.AsyncClient(timeout=60, trust_env=False, verify=False) as client,
            client.stream("POST", f"{living.url}/api/v1/stream", json=body) as kept,
        ):
            events = kept.aiter_raw()  # once it is let go of, the stream is left
            await anext(events)
            async with client.stream("POST", f"{gone.url}/api/v1/stream", json=body) as cut:
                begun = cut.aiter_raw()
                while b"started" not in await anext(begun):
                    pass
                # Until the next batch its own disk alone knows of it, and nobody else.
                with anyio.fail_after(10):
                    while "gone" not in await anyio.to_thread.run_sync(ends):
                        await anyio.sleep(0.05)
                gone.kill()
            with anyio.fail_after(60):
                while (await anyio.to_thread.run_sync(ends)).get("gone") is None:
                    await anyio.sleep(0.05)
            assert ends() == {"gone": "interrupted", "living": None}
