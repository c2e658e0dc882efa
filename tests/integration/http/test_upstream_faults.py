"""Upstreams that refuse, vanish, come back, or hear no abort; clients that lie about a length."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import pytest

from gateway.core.sessions import Session
from gateway.core.states import StreamEnd
from gateway.providers.ollama import OllamaService, OllamaTimeouts
from tests.integration.http.loop_turns import LoopTurns
from tests.integration.http.serving import Served, serving
from tests.integration.http.sse_reader import NATIVE
from tests.integration.ollama_peer import Exchange, OllamaPeer, answer, chat_line
from tests.scripted_provider import ScriptedProvider

ASKED = {"model": "ollama/llama3.2", "messages": [{"role": "user", "content": "hi"}]}


@asynccontextmanager
async def before(peer: OllamaPeer, **timeouts: float) -> AsyncIterator[Served]:
    """A gateway before `peer`."""
    service = OllamaService(peer.url, OllamaTimeouts(**{"control_s": 5.0, **timeouts}))
    peer.add_model("llama3.2")
    try:
        async with serving(service) as served:
            yield served
    finally:
        await service.aclose()


async def newest_session(served: Served) -> Session:
    await served.gateway.streams.wait_idle()
    assert await served.gateway.recorder.flush(5)
    return (await served.gateway.sessions.recent(1))[0]


@pytest.mark.parametrize("status, wait_s", [(429, "7"), (503, "7"), (503, None)])
async def test_a_storm_of_refusals_is_passed_on_and_not_made_larger(
    ollama_peer: OllamaPeer, quick_turns: LoopTurns, status: int, wait_s: str | None
) -> None:
    """F7: each request goes upstream once, and its client is told when to come back."""
    headers = [("Retry-After", wait_s)] if wait_s else []
    body = b'{"error":"server busy, please try again"}'
    ollama_peer.script("llama3.2", answer(status, body, headers=headers))
    async with before(ollama_peer) as served, anyio.create_task_group() as tasks:

        async def ask() -> None:
            reply = await served.client.post("/v1/chat/completions", json=ASKED)
            assert reply.status_code in (429, 503)
            assert reply.headers["retry-after"] == (wait_s or "1")

        for count in range(1, 101):
            tasks.start_soon(ask)
            if count % 10 == 0:  # else the clients alone make one long turn of the loop
                await anyio.lowlevel.checkpoint()
    assert len(ollama_peer.seen("/api/chat")) == 100


async def test_an_upstream_that_comes_back_is_used_again(
    ollama_peer: OllamaPeer,
) -> None:
    """F1, F8: a look finds out, without a request that would fail."""
    async with before(ollama_peer) as served:
        assert (await served.client.post("/api/v1/generate", json=ASKED)).status_code == 200
        await ollama_peer.stop()
        for _ in range(5):
            refused = await served.client.post("/api/v1/generate", json=ASKED)
            assert refused.status_code == 503
            assert refused.headers["retry-after"]
        assert served.gateway.router.health.resting == ["ollama"]
        await ollama_peer.restart()
        while served.gateway.router.health.resting:
            await anyio.lowlevel.checkpoint()
        assert (await served.client.post("/api/v1/generate", json=ASKED)).status_code == 200


async def test_an_upstream_that_does_not_hear_the_abort_holds_nothing_here(
    ollama_peer: OllamaPeer,
) -> None:
    """F9: its connection is closed and the stream recorded, whatever it goes on with."""
    deaf = asyncio.Event()

    async def ignore(exchange: Exchange) -> None:
        head = [("Content-Type", "application/x-ndjson"), ("Transfer-Encoding", "chunked")]
        await exchange.head(200, head)
        line = chat_line("a")
        await exchange.write(b"%x\r\n%b\r\n" % (len(line), line))
        await deaf.wait()

    ollama_peer.script("llama3.2", ignore)
    async with before(ollama_peer) as served:
        for _ in range(10):
            async with served.client.stream("POST", NATIVE, json=ASKED) as reply:
                async for chunk in reply.aiter_raw():
                    if b"event: delta" in chunk:
                        break
            session = await newest_session(served)
            assert session.closed is not None and session.closed.end is StreamEnd.CANCELLED
        for seen in ollama_peer.seen("/api/chat"):
            await seen.until_closed()
        deaf.set()


async def test_a_byte_a_second_is_no_answer(ollama_peer: OllamaPeer) -> None:
    """F5: bytes that never become a line do not put off the deadline."""

    async def drip(exchange: Exchange) -> None:
        head = [("Content-Type", "application/x-ndjson"), ("Transfer-Encoding", "chunked")]
        await exchange.head(200, head)
        line = chat_line("a")
        await exchange.write(b"%x\r\n%b\r\n" % (len(line), line))
        while True:
            await exchange.write(b"1\r\n \r\n")
            await asyncio.sleep(0.02)

    ollama_peer.script("llama3.2", drip)
    async with before(ollama_peer, idle_s=0.3) as served:
        reply = await served.client.post(NATIVE, json=ASKED)
        assert reply.text.count("event: failed") == 1
        assert "provider_timeout" in reply.text
        await ollama_peer.requests[-1].until_closed()


@pytest.mark.parametrize("said", [10, 99_999_999])
async def test_a_length_that_lies_costs_no_memory(quick_turns: LoopTurns, said: int) -> None:
    """F15: 100 MB are sent, whatever was said: most of them are never read."""
    sent = 0
    async with serving(ScriptedProvider(), max_body_bytes=2**20) as served:
        async with await anyio.connect_tcp("127.0.0.1", served.port) as stream:
            head = b"POST /api/v1/generate HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
            await stream.send(head % said + b'{"a": "')
            with anyio.move_on_after(2.0):
                try:
                    while sent < 100 * 2**20:
                        await stream.send(b"x" * 2**16)
                        sent += 2**16
                except (anyio.BrokenResourceError, anyio.EndOfStream):
                    pass
        reply = await served.client.get("/health/live")
    assert reply.status_code == 200
    assert sent < 100 * 2**20
    assert json.loads(reply.text) == {"status": "ok"}
