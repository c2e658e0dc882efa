"""Several servers of one name: the least busy one is asked, one that is away is not."""

import asyncio
from contextlib import AsyncExitStack, aclosing

import anyio
import anyio.lowlevel
import pytest

from gateway.core.errors import EngineFailed, ProviderUnavailable
from gateway.core.events import Finished
from gateway.core.names import ModelRef
from tests.integration.ollama_peer import answer
from tests.integration.openai_peer import CHAT, MODELS, OpenAIPeer, delta, stream, words
from tests.integration.providers.openai_support import REF, ask, read, read_all, serving
from tests.told import stream_of


async def test_each_request_goes_to_the_server_with_the_fewest_under_way() -> None:
    async with OpenAIPeer() as one, OpenAIPeer() as two, AsyncExitStack() as held:
        service = await held.enter_async_context(serving(one.base_url, two.base_url))
        for peer in (one, two):
            peer.script_route(CHAT, stream([delta("a"), asyncio.Event()]))
        streams = []
        for _ in range(6):
            events = await held.enter_async_context(aclosing(stream_of(service, ask(), REF)))
            await anext(events)
            streams.append(events)
        assert (len(one.seen(CHAT)), len(two.seen(CHAT))) == (3, 3)
        # Two of one server's end, so it gets the next two.
        for events in streams[0::2][:2]:
            await events.aclose()
        for _ in range(2):
            events = await held.enter_async_context(aclosing(stream_of(service, ask(), REF)))
            await anext(events)
        assert (len(one.seen(CHAT)), len(two.seen(CHAT))) == (5, 3)


async def test_requests_that_end_or_fail_take_no_place() -> None:
    async with (
        OpenAIPeer() as one,
        OpenAIPeer() as two,
        serving(one.base_url, two.base_url) as service,
    ):
        one.script_route(CHAT, answer(500, b"boom"))
        two.script_route(CHAT, answer(500, b"boom"))
        for _ in range(4):
            _, error = await read_all(service)
            assert isinstance(error, EngineFailed)
        assert (len(one.seen(CHAT)), len(two.seen(CHAT))) == (2, 2)


async def test_a_server_that_refuses_is_passed_over_until_it_lists_again() -> None:
    async with (
        OpenAIPeer() as one,
        OpenAIPeer() as two,
        serving(one.base_url, two.base_url) as service,
    ):
        await service.models()
        await one.stop()
        for _ in range(4):
            assert isinstance((await read(service))[-1], Finished)
        assert len(two.seen(CHAT)) == 4
        await service.models()
        await one.restart()
        await read(service)
        assert one.seen(CHAT) == []  # nobody has looked yet
        await service.models()
        await read(service)
        await read(service)
        assert len(one.seen(CHAT)) == 1


async def test_a_server_that_is_away_is_still_asked_when_all_are() -> None:
    async with (
        OpenAIPeer() as one,
        OpenAIPeer() as two,
        serving(one.base_url, two.base_url) as service,
    ):
        await one.stop()
        await two.stop()
        _, error = await read_all(service)
        assert isinstance(error, ProviderUnavailable)
        assert one.base_url in error.message and two.base_url in error.message
        with pytest.raises(ProviderUnavailable):
            await service.models()
        await two.restart()
        await read(service)
        assert len(two.seen(CHAT)) == 1


async def test_a_request_that_was_sent_is_not_sent_to_another_server() -> None:
    async with (
        OpenAIPeer() as one,
        OpenAIPeer() as two,
        serving(one.base_url, two.base_url) as service,
    ):
        one.script_route(CHAT, answer(500, b"boom"))
        _, error = await read_all(service)
        assert isinstance(error, EngineFailed)
        assert len(one.requests) + len(two.requests) == 1


async def test_listings_are_joined_and_a_model_is_asked_for_where_it_is() -> None:
    async with (
        OpenAIPeer(ids=["m", "only"]) as one,
        OpenAIPeer(ids=["m"]) as two,
        serving(two.base_url, one.base_url) as service,
    ):
        assert {info.id for info in await service.models()} == {"lab/m", "lab/only"}
        for _ in range(3):
            await read(service, ref=ModelRef("lab", "only"))
        assert (len(one.seen(CHAT)), len(two.seen(CHAT))) == (3, 0)


async def test_a_listing_waits_for_all_servers_at_once_and_does_with_those_that_answer() -> None:
    async with OpenAIPeer() as one, OpenAIPeer(ids=["n"]) as two:
        one.script_route(MODELS, stream([asyncio.Event()]))
        async with serving(one.base_url, two.base_url, control_timeout_s=1) as service:
            with anyio.fail_after(20):
                assert [info.id for info in await service.models()] == ["lab/n"]


async def test_closing_ends_what_runs_on_every_server() -> None:
    async with OpenAIPeer() as one, OpenAIPeer() as two, AsyncExitStack() as held:
        async with serving(one.base_url, two.base_url) as service:
            for peer in (one, two):
                peer.script_route(CHAT, stream([delta("a"), asyncio.Event()]))
                events = await held.enter_async_context(aclosing(stream_of(service, ask(), REF)))
                await anext(events)
        for peer in (one, two):
            await peer.requests[0].until_closed()


async def test_cancelled_requests_give_their_places_back() -> None:
    async with (
        OpenAIPeer() as one,
        OpenAIPeer() as two,
        serving(one.base_url, two.base_url) as service,
    ):
        for peer in (one, two):
            peer.script_route(CHAT, stream([asyncio.Event()]))
        for _ in range(3):
            before = len(one.requests) + len(two.requests)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read, service)
                while len(one.requests) + len(two.requests) == before:
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
        for peer in (one, two):
            peer.script_route(CHAT, words("a"))
        for _ in range(3):
            await read(service)
        assert abs(len(one.requests) - len(two.requests)) <= 1
