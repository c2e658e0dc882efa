"""The events of downloads over HTTP: places for watchers are taken before a reply begins."""

from contextlib import AsyncExitStack

import anyio
import anyio.lowlevel

from gateway.core.downloads import Download, DownloadState, parse_order
from tests.integration.http.serving import Served, serving
from tests.scripted_provider import ScriptedProvider

EVENTS = "/api/v1/downloads/d1/events"


async def queue_one(served: Served) -> None:
    order = parse_order("o/n")
    queued = Download("d1", order, "here", DownloadState.QUEUED, 1.0, 1.0)
    await served.gateway.downloads._store.add(queued)


async def test_a_watcher_too_many_is_refused_with_a_status() -> None:
    async with serving(ScriptedProvider()) as served:
        await queue_one(served)
        async with AsyncExitStack() as watching:
            for _ in range(8):
                await watching.enter_async_context(served.gateway.downloads.watch())
            reply = await served.client.get(EVENTS)
            assert (reply.status_code, reply.json()["error"]["code"]) == (503, "overloaded")
        async with served.client.stream("GET", EVENTS) as told:
            assert told.status_code == 200
            async for line in told.aiter_lines():
                if line == "event: progress":
                    break
        with anyio.fail_after(10):
            while served.gateway.downloads._watch.watchers:
                await anyio.lowlevel.checkpoint()


async def test_head_watches_nothing() -> None:
    async with serving(ScriptedProvider()) as served:
        await queue_one(served)
        reply = await served.client.head(EVENTS)
        assert (reply.status_code, reply.headers["allow"]) == (405, "GET")
        assert served.gateway.downloads._watch.watchers == 0


async def test_one_that_has_ended_is_deleted_and_no_other() -> None:
    async with serving(ScriptedProvider()) as served:
        await queue_one(served)
        one = "/api/v1/downloads/d1"
        early = await served.client.delete(one)
        assert (early.status_code, early.json()["error"]["code"]) == (409, "stale_transition")
        assert (await served.client.post(f"{one}/cancel", json={})).status_code == 200
        assert (await served.client.delete(one)).json()["state"] == "CANCELLED"
        assert (await served.client.delete(one)).status_code == 404
