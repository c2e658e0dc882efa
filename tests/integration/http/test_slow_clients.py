"""Clients that send or read slowly, or not at all, and many of them: nobody else notices."""

import asyncio
import json
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream

from gateway.core.events import Started, TextDelta
from gateway.core.states import StreamEnd
from gateway.core.turns import TURN_BYTES
from gateway.http import body as http_body
from tests.integration.http.loop_turns import LoopTurns
from tests.integration.http.serving import Served, serving
from tests.integration.http.sse_reader import HELLO, NATIVE
from tests.integration.http.written import watch_frames
from tests.scripted_provider import ECHO, ScriptedProvider, Step, answer

HEAD = b"POST /api/v1/stream HTTP/1.1\r\nHost: localhost\r\n"
MANY = 200


@asynccontextmanager
async def connected(served: Served, count: int) -> AsyncIterator[list[SocketStream]]:
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(await anyio.connect_tcp("127.0.0.1", served.port))
            for _ in range(count)
        ]


async def read_to_end(stream: SocketStream) -> bytes:
    """Return what comes until the server closes; a reset is an end, too."""
    found = b""
    try:
        while True:
            found += await stream.receive()
    except (anyio.EndOfStream, anyio.BrokenResourceError):
        return found


async def drip(stream: SocketStream) -> None:
    """Send a header that does not end, a byte at a time, until the server closes."""
    await stream.send(b"GET /health/live HTTP/1.1\r\nX-Slow: ")
    try:
        while True:
            await stream.send(b"x")
            await anyio.sleep(0.01)
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        return


async def test_heads_that_do_not_come_are_cut_and_others_are_served(
    quick_turns: LoopTurns,
) -> None:
    """F13: half of them say nothing at all, half drip."""
    provider = ScriptedProvider(answer("hi"))
    async with (
        serving(provider, head_timeout_s=1.5) as served,
        connected(served, MANY) as streams,
        anyio.create_task_group() as tasks,
    ):
        for stream in streams[: MANY // 2]:
            tasks.start_soon(drip, stream)
        reply = await served.client.post(NATIVE, json=HELLO)
        assert reply.status_code == 200
        for stream in streams[MANY // 2 :]:
            assert await read_to_end(stream) == b""


async def test_the_head_of_a_second_request_has_its_time_too() -> None:
    """F13"""
    async with (
        serving(ScriptedProvider(), head_timeout_s=1.0) as served,
        connected(served, 1) as [stream],
    ):
        await stream.send(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await stream.receive()).startswith(b"HTTP/1.1 200")
        await stream.send(b"GET /health")
        assert await read_to_end(stream) == b""


async def test_a_stream_may_take_longer_than_a_head() -> None:
    gate = anyio.Event()
    provider = ScriptedProvider([*answer("he")[:-1], gate, *answer("llo")[1:]])
    async with (
        serving(provider, head_timeout_s=0.5) as served,
        served.client.stream("POST", NATIVE, json=HELLO) as reply,
    ):
        await anyio.sleep(0.8)
        gate.set()
        assert b"event: finished" in await reply.aread()


async def test_a_head_without_end_is_bounded() -> None:
    """F13: no more than a packet beyond 64 KiB is read of it."""
    async with serving(ScriptedProvider()) as served, connected(served, 1) as [stream]:
        await stream.send(b"GET /health/live HTTP/1.1\r\n")
        with pytest.raises(anyio.BrokenResourceError):
            for number in range(100_000):
                await stream.send(b"X-%d: %b\r\n" % (number, b"x" * 1000))


async def test_a_body_that_does_not_come_is_refused_after_its_time(
    monkeypatch: pytest.MonkeyPatch, quick_turns: LoopTurns
) -> None:
    """F13"""
    monkeypatch.setattr(http_body, "BODY_DEADLINE_S", 2.0)
    provider = ScriptedProvider()
    async with serving(provider) as served, connected(served, 50) as streams:
        for stream in streams:
            await stream.send(HEAD + b"Content-Length: 100\r\n\r\n{")
        for stream in streams:
            reply = await read_to_end(stream)
            assert reply.startswith(b"HTTP/1.1 408 ")
    assert provider.requests == []


async def test_connections_beyond_the_most_are_told_so_and_let_in_when_others_left() -> None:
    """F45: refused before file descriptors run out."""
    async with serving(ScriptedProvider(), max_connections=20) as served:
        async with connected(served, 20):
            async with connected(served, 1) as [stream]:
                reply = await read_to_end(stream)
            head, _, body = reply.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503 ")
            assert b"Retry-After: 1" in head
            assert json.loads(body)["error"]["code"] == "overloaded"
        while (await served.client.get("/health/live")).status_code != 200:
            pass


async def test_many_idle_streams_leave_the_gateway_quick(quick_turns: LoopTurns) -> None:
    """F14, in small: each waits for its model, and others are served meanwhile."""
    gate = anyio.Event()

    class Sometimes(ScriptedProvider):
        async def stream(self, request, ref):  # type: ignore[no-untyped-def]
            self.script = answer("hi") if request.options.seed else [Started(ECHO), gate]
            async for event in super().stream(request, ref):
                yield event

    body = json.dumps(HELLO).encode()
    request = HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    async with serving(Sometimes()) as served, connected(served, MANY) as streams:
        for stream in streams:
            await stream.send(request)
        while served.gateway.streams.live_count < MANY:
            await anyio.sleep(0.01)
        quick = await served.client.post(NATIVE, json={**HELLO, "options": {"seed": 1}})
        assert b"event: finished" in quick.content
        assert served.gateway.streams.live_count == MANY
    # All of them left.


@asynccontextmanager
async def taking(served: Served, count: int) -> AsyncIterator[None]:
    """Clients that ask for a stream and take all that comes."""
    body = json.dumps(HELLO).encode()
    async with connected(served, count) as streams, anyio.create_task_group() as tasks:
        for stream in streams:
            await stream.send(HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
            tasks.start_soon(read_to_end, stream)
        yield
        tasks.cancel_scope.cancel()


async def test_readers_that_are_sent_large_pieces_at_once_share_turns_of_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """F11: whoever has nothing large to say is served between them."""
    gate, size = anyio.Event(), 20_000
    turns = LoopTurns(asyncio.get_running_loop())
    written: Counter[int] = Counter()

    def note(frames: bytes) -> None:
        written[turns.count] += len(frames)

    watch_frames(monkeypatch, note)

    class Each(ScriptedProvider):
        async def stream(self, request, ref):  # type: ignore[no-untyped-def]
            self.script = [Started(ECHO), gate, TextDelta("x" * size), gate, anyio.Event()]
            async for event in super().stream(request, ref):
                yield event

    async with serving(Each()) as served, taking(served, MANY):
        while served.gateway.streams.live_count < MANY:
            await anyio.sleep(0.01)
        with turns.measured():
            gate.set()
            while sum(written.values()) < MANY * size:
                await anyio.sleep(0.01)
    assert max(written.values()) < TURN_BYTES + 2 * size
    assert sum(each > size for each in written.values()) >= MANY * size // (TURN_BYTES + 2 * size)


async def test_readers_that_take_nothing_hold_a_bounded_part_of_the_answer() -> None:
    """F12: the model waits; what is held is the buffer and what the sockets take."""

    def script() -> Iterator[Step]:
        yield Started(ECHO)
        while True:
            yield TextDelta("x" * 1000)

    provider = ScriptedProvider(script())
    body = json.dumps(HELLO).encode()
    async with (
        serving(provider, send_timeout_s=0.5, stream_buffer_events=16) as served,
        await anyio.connect_tcp("127.0.0.1", served.port) as stream,
    ):
        raw = stream.extra(SocketAttribute.raw_socket)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await stream.send(HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        await provider.closed.wait()
        session = await served.last_session()
    assert session.closed is not None and session.closed.end is StreamEnd.CANCELLED
    # Loopback's sockets take some megabytes; the rest of an endless answer was never made.
    assert provider.said < 20_000
