"""Answers of OpenAI-compatible servers that go by themselves end as those that a task runs."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio
import pytest

from gateway.core.events import Finished
from gateway.providers.openai import OpenAIService
from tests.begun import Begun, Outcome, outcome
from tests.integration.ollama_peer import Do, Exchange, Script, Step, answer, raw
from tests.integration.openai_peer import CHAT, DONE, OpenAIPeer, event, stream
from tests.integration.providers.openai_support import REF, ask, read, read_all, serving


def said(content: str, finish: str | None = None) -> bytes:
    return event(choices=[{"index": 0, "delta": {"content": content}, "finish_reason": finish}])


WHOLE = said("ü") + said("b", "stop") + DONE


def sized(status: int, body: bytes, headers: bytes = b"") -> bytes:
    length = b"Content-Length: %d\r\n" % len(body)
    return b"HTTP/1.1 %d X\r\n%b%b\r\n%b" % (status, length, headers, body)


RECORDED = {
    "whole": sized(200, WHOLE),
    "no last event": sized(200, said("a", "stop")),
    "no end": sized(200, said("a")),
    "an error inside": sized(200, said("a") + event(error={"message": "CUDA", "code": 500})),
    "rubbish": sized(200, said("a") + b"data: {\n\n"),
    "no stream": sized(200, b"{}", b"Content-Type: application/json\r\n"),
    "encoded": sized(200, WHOLE, b"Content-Encoding: gzip\r\n"),
    "broken": sized(500, b'{"error":{"message":"no"}}'),
    "busy": sized(429, b'{"error":{"message":"busy"}}', b"Retry-After: 7\r\n"),
}


@asynccontextmanager
async def served() -> AsyncIterator[tuple[OpenAIPeer, OpenAIService]]:
    async with OpenAIPeer() as peer, serving(peer.base_url, patience_s=120.0) as service:
        yield peer, service


async def keep_one(service: OpenAIService, peer: OpenAIPeer) -> None:
    """Have a connection that serves again."""
    peer.script_route(CHAT, stream([WHOLE]))
    await read(service)
    peer.requests.clear()


async def both_ways(
    service: OpenAIService, peer: OpenAIPeer, script: Script
) -> tuple[tuple[Outcome, int], tuple[Outcome, int]]:
    """Return what an answer is, and how often it was asked for: as a task has it, and by itself."""
    await keep_one(service, peer)
    peer.script_route(CHAT, script)
    by_task = outcome(*await read_all(service)), len(peer.requests)
    await keep_one(service, peer)
    peer.script_route(CHAT, script)
    by_itself = await Begun().begin(service, ask(), REF).end()
    assert [replica.outstanding for replica in service._replicas] == [0]
    return by_task, (by_itself, len(peer.requests))


@pytest.mark.parametrize("name", RECORDED)
async def test_a_cut_at_every_byte_gives_what_a_task_gives_here_too(name: str) -> None:
    message = RECORDED[name]
    async with served() as (peer, service):
        for cut in range(len(message) + 1):
            steps: Sequence[Step] = [message[:cut], Do.CLOSE]
            by_task, by_itself = await both_ways(service, peer, raw(steps))
            assert by_itself == by_task, cut


async def test_nothing_is_left_of_a_whole_answer_but_its_connection() -> None:
    async with served() as (peer, service):
        await keep_one(service, peer)
        for _ in range(3):
            begun = Begun().begin(service, ask(), REF)
            await begun.is_over.wait()
            assert begun.rest is None and type(begun.events[-1]) is Finished
        assert peer.connections == 1


async def test_a_field_that_is_refused_is_left_out_when_asked_again() -> None:
    refusal = b'{"error":{"message":"Unrecognized request argument: stream_options"}}'

    async def refuse_usage(exchange: Exchange) -> None:
        if "stream_options" in exchange.seen.body:
            return await answer(400, refusal)(exchange)
        await stream([WHOLE])(exchange)

    async with served() as (peer, service):
        await keep_one(service, peer)
        peer.script_route(CHAT, refuse_usage)
        _, error, _ = await Begun().begin(service, ask(), REF).end()
        assert error is None
        assert ["stream_options" in seen.body for seen in peer.requests] == [True, False]
        begun = Begun().begin(service, ask(), REF)
        assert (await begun.end())[1] is None and begun.rest is None


async def test_a_server_that_went_away_leaves_the_answer_to_another() -> None:
    async with OpenAIPeer() as first, OpenAIPeer() as second:
        for peer in (first, second):
            peer.script_route(CHAT, stream([WHOLE]))
        async with serving(first.base_url, second.base_url) as service:
            for _ in range(2):
                await read(service)
            first.script_route(CHAT, raw([asyncio.Event()]))
            begun = Begun().begin(service, ask(), REF)
            await first.request(1)
            await first.stop()
            _, error, _ = await begun.end()
            assert error is None
            assert [each.is_away for each in service._replicas] == [True, False]
            assert [each.outstanding for each in service._replicas] == [0, 0]


async def test_cancelling_hangs_up_here_too() -> None:
    more = asyncio.Event()
    async with served() as (peer, service):
        await keep_one(service, peer)
        peer.script_route(CHAT, stream([said("a"), more]))
        begun = Begun().begin(service, ask(), REF)
        seen = await peer.request()
        await anyio.wait_all_tasks_blocked()
        assert begun.tellings and not seen.closed.is_set()
        begun.cancel()
        begun.cancel()
        assert [replica.outstanding for replica in service._replicas] == [0]
        await seen.until_closed()
        more.set()
