"""Draining: open streams get their end, new work is refused in each face's form."""

import anyio
import anyio.lowlevel

from gateway.core.events import Started, TextDelta
from gateway.core.states import StreamEnd
from tests.integration.http.serving import serving
from tests.integration.http.sse_reader import HELLO, NATIVE, parse_frames
from tests.scripted_provider import ECHO, ScriptedProvider, answer


async def test_an_open_stream_sees_that_the_gateway_shuts_down() -> None:
    provider = ScriptedProvider([Started(ECHO), TextDelta("he"), anyio.Event()])
    async with (
        serving(provider) as served,
        served.client.stream("POST", NATIVE, json=HELLO) as reply,
        anyio.create_task_group() as tasks,
    ):
        body = b""
        async for chunk in reply.aiter_raw():
            body += chunk
            if b'"he"' in chunk:
                tasks.start_soon(served.gateway.streams.drain, 0.1)
        session = await served.last_session()
    last = parse_frames(body)[-1]
    assert (last.event, last.json["code"], last.json["retryable"]) == (
        "failed",
        "shutting_down",
        True,
    )
    assert session.closed is not None
    assert (session.closed.end, session.closed.error_code) == (StreamEnd.ERROR, "shutting_down")


async def test_an_open_chat_sees_that_the_gateway_shuts_down() -> None:
    provider = ScriptedProvider([Started(ECHO), TextDelta("he"), anyio.Event()])
    body = b""
    async with (
        serving(provider) as served,
        served.client.stream(
            "POST", "/v1/chat/completions", json={**HELLO, "stream": True}
        ) as reply,
        anyio.create_task_group() as tasks,
    ):
        async for chunk in reply.aiter_raw():
            body += chunk
            if b'"he"' in chunk:
                tasks.start_soon(served.gateway.streams.drain, 0.1)
    last = parse_frames(body)[-1]
    assert last.json["error"]["code"] == "shutting_down"


async def test_a_stream_that_ends_within_the_grace_is_whole() -> None:
    gate = anyio.Event()
    provider = ScriptedProvider([*answer("he")[:-1], gate, *answer("llo")[1:]])
    async with (
        serving(provider) as served,
        served.client.stream("POST", NATIVE, json=HELLO) as reply,
        anyio.create_task_group() as tasks,
    ):
        body = b""
        async for chunk in reply.aiter_raw():
            body += chunk
            if b'"he"' in chunk:
                tasks.start_soon(served.gateway.streams.drain, 20)
                gate.set()
    assert parse_frames(body)[-1].event == "finished"


async def test_new_work_is_refused_while_draining_and_health_is_not() -> None:
    async with serving(ScriptedProvider(answer("hi"))) as served:
        await served.gateway.streams.drain(0)
        native = await served.client.post(NATIVE, json=HELLO)
        chat = await served.client.post("/v1/chat/completions", json=HELLO)
        # GraphQL looks for itself: a POST may be a query (test_graphql_drain.py).
        graphql = await served.client.post("/graphql", json={"query": "{ a }"})
        models = await served.client.get("/v1/models")
        live = await served.client.get("/health/live")
        ready = await served.client.get("/health/ready")
    for reply in (native, chat):
        assert reply.status_code == 503
        assert reply.headers["retry-after"] == "2"
        assert reply.headers["connection"] == "close"
        assert reply.json()["error"]["code"] == "shutting_down"
    assert chat.headers["x-should-retry"] == "true"
    assert graphql.status_code == models.status_code == live.status_code == 200
    assert ready.status_code == 503
    told = ready.json()
    assert (told["status"], told["reasons"]) == ("unready", ["shutting_down"])


async def test_too_many_streams_are_refused_with_a_status() -> None:
    provider = ScriptedProvider([Started(ECHO), anyio.Event()])
    async with (
        serving(provider, max_streams=1) as served,
        served.client.stream("POST", NATIVE, json=HELLO) as first,
    ):
        second = await served.client.post(NATIVE, json=HELLO)
        whole = await served.client.post("/v1/chat/completions", json=HELLO)
    assert first.status_code == 200
    assert second.status_code == whole.status_code == 503
    assert second.json()["error"]["code"] == whole.json()["error"]["code"] == "overloaded"
    assert second.headers["retry-after"] == "1"


async def test_streams_and_embeddings_share_one_grace() -> None:
    provider = ScriptedProvider([Started(ECHO), anyio.Event()])
    async with (
        serving(provider) as served,
        served.client.stream("POST", NATIVE, json=HELLO),
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(served.gateway.drain, 3600)
        while not (served.gateway.streams.draining and served.gateway.embeddings.draining):
            await anyio.lowlevel.checkpoint()
        await served.gateway.drain(0)
