"""Who leaves is noticed: closing a stream, or cancelling its reader, closes the connection."""

import asyncio
from contextlib import aclosing

import anyio
import anyio.lowlevel
import pytest

from gateway.core.events import Finished
from tests.integration.ollama_peer import (
    OllamaPeer,
    Step,
    answer,
    chat_end,
    chat_line,
    chunks,
    raw,
)
from tests.integration.providers.ollama_support import REF, ask, read, serving
from tests.told import stream_of


async def test_closing_the_generator_closes_the_connection(ollama_peer: OllamaPeer) -> None:
    """T13"""
    ollama_peer.script("llama3.2", chunks([chat_line("a"), asyncio.Event()]))
    async with serving(ollama_peer.url) as service:
        async with aclosing(stream_of(service, ask(), REF)) as stream:
            await anext(stream)
            assert not ollama_peer.requests[0].closed.is_set()
        await ollama_peer.requests[0].until_closed()


PHASES: dict[str, list[Step]] = {
    "before the first line": [asyncio.Event()],
    "between lines": [chat_line("a"), asyncio.Event()],
    "inside a line": [chat_line("a"), b'{"mess', asyncio.Event()],
}


@pytest.mark.parametrize("phase", PHASES)
async def test_cancelling_the_reader_closes_the_connection(
    ollama_peer: OllamaPeer, phase: str
) -> None:
    """T13"""
    ollama_peer.script("llama3.2", chunks(PHASES[phase]))
    await _cancel_and_expect_close(ollama_peer, after_a_line=len(PHASES[phase]) > 1)


async def test_cancelling_before_the_headers_closes_the_connection(
    ollama_peer: OllamaPeer,
) -> None:
    """T13: a queued request is skipped by Ollama when its client leaves."""
    ollama_peer.script("llama3.2", raw([asyncio.Event()]))
    await _cancel_and_expect_close(ollama_peer)


async def test_cancelling_while_an_error_is_read_closes_the_connection(
    ollama_peer: OllamaPeer,
) -> None:
    """T13"""
    ollama_peer.script("llama3.2", chunks([b'{"error"', asyncio.Event()], status=500))
    await _cancel_and_expect_close(ollama_peer)


async def _cancel_and_expect_close(peer: OllamaPeer, after_a_line: bool = False) -> None:
    cancelled, reading = anyio.Event(), anyio.Event()

    async def consume() -> None:
        try:
            async with aclosing(stream_of(service, ask(), REF)) as stream:
                async for _ in stream:
                    reading.set()
        except anyio.get_cancelled_exc_class():
            cancelled.set()
            raise

    async with serving(peer.url) as service:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(consume)
            seen = await peer.request()
            if after_a_line:
                await reading.wait()
            # The reader is in the phase once nothing more can happen by itself.
            await anyio.wait_all_tasks_blocked()
            assert not seen.closed.is_set()
            tasks.cancel_scope.cancel()
        assert cancelled.is_set(), "a cancellation was swallowed"
        await seen.until_closed()


async def test_a_stream_never_read_sends_nothing(ollama_peer: OllamaPeer) -> None:
    """T13"""
    async with serving(ollama_peer.url) as service:
        await stream_of(service, ask(), REF).aclose()
    assert ollama_peer.requests == []


async def test_an_end_of_message_that_stays_away_holds_nobody_up(
    ollama_peer: OllamaPeer,
) -> None:
    """T13: the answer is whole, only its connection is lost."""
    ollama_peer.script("llama3.2", chunks([chat_line("a"), chat_end(), asyncio.Event()]))
    async with serving(ollama_peer.url) as service:
        events = await read(service)
        assert isinstance(events[-1], Finished)
        await ollama_peer.requests[0].until_closed()


async def test_one_leaving_does_not_disturb_the_others(ollama_peer: OllamaPeer) -> None:
    """T13"""
    more = asyncio.Event()
    ollama_peer.script("llama3.2", chunks([chat_line("a"), more, chat_end()]))
    async with serving(ollama_peer.url) as service:
        stays = stream_of(service, ask(), REF)
        leaves = stream_of(service, ask(), REF)
        await anext(stays)
        await anext(leaves)
        await leaves.aclose()
        await ollama_peer.requests[1].until_closed()
        more.set()
        assert isinstance([event async for event in stays][-1], Finished)
    assert not ollama_peer.requests[0].closed.is_set()


async def test_hundreds_of_streams_are_open_at_once(ollama_peer: OllamaPeer) -> None:
    """No limit on connections hides in the client: all of them are answered together."""
    together = 300
    more = asyncio.Event()
    ollama_peer.script("llama3.2", chunks([chat_line("a"), more, chat_end()]))
    async with serving(ollama_peer.url) as service, anyio.create_task_group() as tasks:
        for _ in range(together):
            tasks.start_soon(read, service)
        await ollama_peer.request(together - 1)
        more.set()
    assert ollama_peer.connections == together


async def test_closing_the_service_closes_idle_connections() -> None:
    """T13"""
    async with OllamaPeer() as peer:
        peer.script("llama3.2", answer(200, chat_end()))
        async with serving(peer.url) as service:
            await read(service)
            assert await service.version() == "0.33.0"
        with anyio.fail_after(5):
            while peer.open_connections:
                await anyio.lowlevel.checkpoint()
