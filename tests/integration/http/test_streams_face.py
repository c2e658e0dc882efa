"""/api/v1/streams: go on after a cut, read without having opened, stop; and who may."""

import random
from collections.abc import Iterator
from typing import Any

import anyio
import httpx
import pytest

from gateway.core.events import Finished, Started, TextDelta, Usage
from gateway.core.states import StreamEnd
from tests.integration.http.chaos_proxy import ChaosProxy
from tests.integration.http.serving import Served, serving
from tests.integration.http.sse_reader import HELLO, NATIVE, Frame, parse_frames
from tests.scripted_provider import ECHO, ScriptedProvider, Step, answer

STREAMS = "/api/v1/streams"
OURS = {"authorization": "Bearer ours"}
WORDS = [f"word {number} \u00fc\r\n\u2028" for number in range(300)]


def events_of(body: bytes) -> list[Frame]:
    """Return the whole events; a block that was cut off is dropped, as EventSource does."""
    whole = body.rpartition(b"\n\n")[0]
    return [frame for frame in parse_frames(whole + b"\n\n") if frame.data is not None]


def text_of(frames: list[Frame]) -> str:
    return "".join(frame.json.get("text", "") for frame in frames if frame.event == "delta")


async def open_detached(served: Served, **headers: str) -> dict[str, Any]:
    reply = await served.client.post(STREAMS, json=HELLO, headers=headers)
    assert reply.status_code == 202
    told: dict[str, Any] = reply.json()
    return told


def after(frames: list[Frame]) -> dict[str, str]:
    last = frames[-1].id if frames else None
    return {} if last is None else {"last-event-id": last}


async def read_through(url: str, path: str, frames: list[Frame]) -> int:
    """Read what follows `frames` into them until the connection ends; return the status."""
    body = b""
    async with httpx.AsyncClient(trust_env=False, verify=False, timeout=20) as client:
        try:
            async with client.stream("GET", url + path, headers=after(frames)) as reply:
                async for chunk in reply.aiter_raw():
                    body += chunk
        except httpx.TransportError:
            frames += events_of(body)
            return 0
    frames += events_of(body)
    return reply.status_code


@pytest.mark.parametrize("seed", range(8))
async def test_however_often_it_is_cut_each_event_arrives_once_and_the_text_is_whole(
    seed: int,
) -> None:
    chance = random.Random(seed)
    cuts = [chance.randrange(400, 6000) for _ in range(20)]
    async with serving(ScriptedProvider(answer(*WORDS)), stream_buffer_events=8) as served:
        told = await open_detached(served)
        whole = [frame async for frame in frames_of(served, told["url"])]
        async with ChaosProxy(served.port, iter(cuts)).running() as proxy:
            frames: list[Frame] = []
            while await read_through(proxy.url, told["url"], frames) != 204:
                pass
            assert proxy.cut_count >= 4
    assert [frame.id for frame in frames] == [str(n) for n in range(1, len(WORDS) + 3)]
    assert frames == whole
    assert text_of(frames) == "".join(WORDS)


async def frames_of(served: Served, path: str) -> Any:
    for frame in events_of((await served.client.get(path)).content):
        yield frame


async def test_a_running_stream_is_cut_and_goes_on_live_where_it_was() -> None:
    gates = [anyio.Event() for _ in range(5)]

    def script() -> Iterator[Step]:
        yield Started(ECHO)
        for number, gate in enumerate(gates):
            yield TextDelta(f"{number} ")
            yield gate
        yield Finished("stop", Usage(1, 5))

    async with serving(ScriptedProvider(script()), stream_resume_s=20) as served:
        frames: list[Frame] = []
        async with served.client.stream("POST", NATIVE, json=HELLO) as reply:
            path = f"{STREAMS}/{reply.headers['x-stream-id']}"
            frames += await read_one(reply)
        for gate in gates:
            gate.set()
            async with served.client.stream("GET", path, headers=after(frames)) as reply:
                assert reply.status_code == 200
                frames += await read_one(reply)
        done = await served.client.get(path, headers=after(frames))
        while done.status_code == 200:
            frames += events_of(done.content)
            done = await served.client.get(path, headers=after(frames))
        session = await served.last_session()
    assert done.status_code == 204 and done.content == b""
    assert [frame.id for frame in frames] == [str(n) for n in range(1, 8)]
    assert text_of(frames) == "0 1 2 3 4 "
    assert frames[-1].event == "finished"
    assert session.closed is not None and session.closed.end is StreamEnd.STOP


async def read_one(reply: httpx.Response) -> list[Frame]:
    """Return the events of a reply up to the first chunk that has some."""
    body = b""
    async for chunk in reply.aiter_raw():
        body += chunk
        if frames := events_of(body):
            return frames
    return []


async def test_without_a_time_to_resume_a_cut_stream_is_cancelled_and_says_so() -> None:
    provider = ScriptedProvider([Started(ECHO), TextDelta("a"), anyio.Event()])
    async with serving(provider) as served:
        async with served.client.stream("POST", NATIVE, json=HELLO) as reply:
            path = f"{STREAMS}/{reply.headers['x-stream-id']}"
        await served.last_session()
        twice = [(await served.client.get(path)).content for _ in range(2)]
        last = events_of(twice[0])[-1]
        delivered = await served.client.get(path, headers={"last-event-id": last.id or ""})
    assert twice[0] == twice[1]
    assert (last.event, last.json["reason"]) == ("finished", "cancelled")
    assert delivered.status_code == 204


async def test_a_detached_stream_lives_on_without_its_client() -> None:
    gate = anyio.Event()
    provider = ScriptedProvider([*answer("he")[:-1], gate, *answer("llo")[1:]])
    async with serving(provider) as served:
        body = {**HELLO, "detached": True}
        async with served.client.stream("POST", NATIVE, json=body) as reply:
            path = f"{STREAMS}/{reply.headers['x-stream-id']}"
            frames = await read_one(reply)
        gate.set()
        session = await served.last_session()
        rest = await served.client.get(path, headers=after(frames))
    assert text_of([*frames, *events_of(rest.content)]) == "hello"
    assert session.closed is not None and session.closed.end is StreamEnd.STOP


async def test_a_newer_reader_takes_over_and_the_older_is_told_without_a_number() -> None:
    gate = anyio.Event()
    provider = ScriptedProvider([*answer("he")[:-1], gate, *answer("llo")[1:]])
    async with serving(provider) as served:
        told = await open_detached(served)
        async with served.client.stream("GET", told["url"]) as old:
            old_chunks = old.aiter_raw()
            body = await anext(old_chunks)
            while b'"he"' not in body:
                body += await anext(old_chunks)
            first = events_of(body)
            new = await read_behind(served, told["url"], first, gate)
            [ended] = events_of(b"".join([chunk async for chunk in old_chunks]))
    assert (ended.event, ended.id, ended.json["code"]) == ("failed", None, "stream_taken_over")
    assert text_of([*first, *new]) == "hello"


async def read_behind(
    served: Served, path: str, frames: list[Frame], gate: anyio.Event
) -> list[Frame]:
    """Read what follows `frames`, and open the gate once this reader is there."""
    body = b""
    async with served.client.stream("GET", path, headers=after(frames)) as reply:
        gate.set()
        async for chunk in reply.aiter_raw():
            body += chunk
    return events_of(body)


async def test_deleting_ends_the_stream_for_its_reader_and_its_record() -> None:
    provider = ScriptedProvider([Started(ECHO), TextDelta("a"), anyio.Event()])
    async with serving(provider, stream_resume_s=20) as served:
        body = b""
        async with served.client.stream("POST", NATIVE, json=HELLO) as reply:
            path = f"{STREAMS}/{reply.headers['x-stream-id']}"
            async for chunk in reply.aiter_raw():
                body += chunk
                if b'"a"' in chunk:
                    deleted = await served.client.delete(path)
        session = await served.last_session()
        again = await served.client.delete(path)
        unknown = await served.client.delete(f"{STREAMS}/nobody")
    last = events_of(body)[-1]
    assert deleted.status_code == again.status_code == 204 and deleted.content == b""
    assert (last.event, last.json["reason"]) == ("finished", "cancelled")
    assert last.json["usage"]["completion_tokens"] == 1
    assert session.closed is not None and session.closed.end is StreamEnd.CANCELLED
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "stream_not_found")


async def test_deleting_ends_a_chat_of_openai_s_face_by_the_id_in_its_chunks() -> None:
    provider = ScriptedProvider([Started(ECHO), TextDelta("a"), anyio.Event()])
    async with serving(provider) as served:
        body = b""
        chat = {**HELLO, "stream": True}
        async with served.client.stream("POST", "/v1/chat/completions", json=chat) as reply:
            path = f"{STREAMS}/{reply.headers['x-stream-id']}"
            async for chunk in reply.aiter_raw():
                body += chunk
                if b'"a"' in chunk:
                    assert f"chatcmpl-{reply.headers['x-stream-id']}".encode() in chunk
                    await served.client.delete(path)
    *_, last, done = parse_frames(body)
    assert last.json["choices"][0]["finish_reason"] == "length"
    assert done.data == "[DONE]"


async def test_another_caller_neither_reads_nor_stops_a_stream() -> None:
    provider = ScriptedProvider([Started(ECHO), anyio.Event()])
    async with serving(provider) as served:
        told = await open_detached(served, **OURS)
        for headers in ({}, {"authorization": "Bearer theirs"}):
            for method in ("GET", "DELETE"):
                reply = await served.client.request(method, told["url"], headers=headers)
                assert reply.status_code == 404
                assert reply.json()["error"]["code"] == "stream_not_found"
        assert served.gateway.streams.live_count == 1
        assert (await served.client.delete(told["url"], headers=OURS)).status_code == 204


async def test_a_token_lets_in_who_has_no_key_and_only_to_read_that_stream() -> None:
    async with serving(ScriptedProvider(answer("hello"))) as served:
        told = await open_detached(served, **OURS)
        other = await open_detached(served, **OURS)
        token = {"token": told["token"]}
        read = await served.client.get(told["url"], params=token)
        refused = [
            await served.client.get(other["url"], params=token),
            await served.client.get(told["url"], params={"token": other["token"]}),
            await served.client.delete(told["url"], params=token),
        ]
    assert text_of(events_of(read.content)) == "hello"
    assert [reply.status_code for reply in refused] == [404, 404, 404]


async def test_opening_tells_how_to_read() -> None:
    async with serving(ScriptedProvider(answer("hello"))) as served:
        reply = await served.client.post(STREAMS, json=HELLO)
        told = reply.json()
        assert reply.status_code == 202
        assert set(told) == {"stream_id", "url", "token", "token_expires_in_s"}
        assert told["url"] == reply.headers["location"] == f"{STREAMS}/{told['stream_id']}"
        assert reply.headers["x-stream-id"] == told["stream_id"]
        assert reply.headers["cache-control"] == "no-store"
        assert (await served.last_session()).opened.id == told["stream_id"]


async def test_a_failure_of_a_stream_that_is_resumed_is_an_event() -> None:
    async with serving(ScriptedProvider()) as served:
        opened = await served.client.post(STREAMS, json={**HELLO, "model": "scripted/none"})
        path = opened.json()["url"]
        first, second = [await served.client.get(path) for _ in range(2)]
    [failed] = events_of(first.content)
    assert first.status_code == 200
    assert (failed.id, failed.event, failed.json["code"]) == ("1", "failed", "incomplete_stream")
    assert failed.json["request_id"] == opened.headers["x-request-id"]
    assert first.content == second.content


@pytest.mark.parametrize(
    ("last_event_id", "status", "code"),
    [
        ("x", 400, "invalid_request"),
        ("-1", 400, "invalid_request"),
        ("9" * 5000, 400, "invalid_request"),
        ("99", 400, "invalid_request"),
        ("2", 410, "stream_gap"),
    ],
)
async def test_an_event_that_is_not_there_is_refused(
    last_event_id: str, status: int, code: str
) -> None:
    provider = ScriptedProvider(answer(*"abcdefgh"))
    async with serving(provider, stream_replay_events=4) as served:
        opened = await served.client.post(NATIVE, json=HELLO)
        path = f"{STREAMS}/{opened.headers['x-stream-id']}"
        reply = await served.client.get(path, headers={"last-event-id": last_event_id})
        kept = await served.client.get(path, headers={"last-event-id": "6"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
    assert text_of(events_of(kept.content)) == "fgh"


async def test_looking_with_head_takes_the_stream_from_nobody() -> None:
    provider = ScriptedProvider([Started(ECHO), anyio.Event()])
    async with serving(provider) as served:
        told = await open_detached(served)
        looked = await served.client.head(told["url"])
    assert (looked.status_code, looked.headers["allow"]) == (405, "DELETE, GET")


async def test_a_dead_client_of_a_hot_stream_costs_one_bounded_buffer() -> None:
    def script() -> Iterator[Step]:
        yield Started(ECHO)
        for _ in range(200_000):
            yield TextDelta("x")

    provider = ScriptedProvider(script())
    async with serving(provider, stream_resume_s=20, stream_replay_events=1000) as served:
        async with served.client.stream("POST", NATIVE, json=HELLO) as reply:
            path = f"{STREAMS}/{reply.headers['x-stream-id']}"
        alive = await served.client.get("/health/live")
        [stream] = served.gateway.streams.of_caller("")
        while stream.has_reader:
            await anyio.lowlevel.checkpoint()
        await anyio.wait_all_tasks_blocked()
        assert stream.size_bytes < 2_000 * 300
        assert (await served.client.delete(path)).status_code == 204
        session = await served.last_session()
    assert alive.status_code == 200
    assert provider.said < 200_000
    assert session.closed is not None and session.closed.end is StreamEnd.CANCELLED
