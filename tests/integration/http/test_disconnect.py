"""A client that leaves stops the model in every phase, and its record says `cancelled`."""

import socket
import struct
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from gateway.core.events import Started, TextDelta, Usage, Waiting
from gateway.core.states import StreamEnd
from tests.integration.http.loop_turns import LoopTurns
from tests.integration.http.serving import Served, serving
from tests.integration.http.sse_reader import HELLO, NATIVE
from tests.scripted_provider import ECHO, ScriptedProvider, Step

FACES: dict[str, tuple[str, dict[str, Any]]] = {
    "native stream": (NATIVE, {}),
    "native whole": ("/api/v1/generate", {}),
    "openai stream": ("/v1/chat/completions", {"stream": True}),
    "openai whole": ("/v1/chat/completions", {}),
}
PHASES: dict[str, list[Step]] = {
    "before the first event": [],
    "while waiting": [Waiting("loading", fraction=0.5)],
    "before the first token": [Started(ECHO)],
    "in the middle": [Started(ECHO), TextDelta("he"), TextDelta("llo")],
}


async def _leave_when(served: Served, happened: anyio.Event, face: str) -> None:
    """Send the request, wait for `happened`, then reset the connection."""
    path, fields = FACES[face]
    request = served.client.build_request("POST", path, json={**HELLO, **fields})
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(request.content)}\r\n\r\n"
    )
    async with await anyio.connect_tcp("127.0.0.1", served.port) as stream:
        await stream.send(head.encode() + request.content)
        await happened.wait()
        raw = stream.extra(anyio.abc.SocketAttribute.raw_socket)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("phase", PHASES)
async def test_leaving_stops_the_model(phase: str, face: str) -> None:
    reached = anyio.Event()

    def script() -> Iterator[Step]:
        yield from PHASES[phase]
        reached.set()
        yield anyio.Event()

    provider = ScriptedProvider(script())
    async with serving(provider) as served:
        await _leave_when(served, reached, face)
        await provider.closed.wait()
        session = await served.last_session()
    assert session.closed is not None
    assert session.closed.end is StreamEnd.CANCELLED
    assert session.closed.error_code is None
    assert session.closed.model == "echo"


@pytest.mark.parametrize("face", FACES)
async def test_leaving_a_stream_that_never_pauses_freezes_nobody(
    face: str, quick_turns: LoopTurns
) -> None:
    """F11"""
    middle = anyio.Event()

    def script() -> Iterator[Step]:
        yield Started(ECHO)
        for count in range(200_000):
            if count == 1000:
                middle.set()
            yield TextDelta("x")

    provider = ScriptedProvider(script())
    async with serving(provider) as served:
        await _leave_when(served, middle, face)
        reply = await served.client.get("/health/live")
        await provider.closed.wait()
        session = await served.last_session()
    assert reply.status_code == 200
    assert session.closed is not None and session.closed.end is StreamEnd.CANCELLED
    assert provider.said < 200_000


async def test_a_reader_that_takes_nothing_is_cut_after_the_send_timeout() -> None:
    def script() -> Iterator[Step]:
        yield Started(ECHO)
        while True:
            yield TextDelta("x" * 10_000)

    provider = ScriptedProvider(script())
    async with serving(provider, send_timeout_s=0.1, stream_buffer_events=4) as served:
        await _leave_when(served, provider.closed, "native stream")
        session = await served.last_session()
    assert session.closed is not None and session.closed.end is StreamEnd.CANCELLED


async def test_a_body_that_stops_in_the_middle_is_let_go() -> None:
    provider = ScriptedProvider()
    async with serving(provider) as served:
        async with await anyio.connect_tcp("127.0.0.1", served.port) as stream:
            await stream.send(
                b"POST /api/v1/stream HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"
            )
        reply = await served.client.get("/health/live")
    assert reply.status_code == 200
    assert provider.requests == []


@pytest.mark.parametrize("face", ["native stream", "openai stream"])
async def test_what_a_client_that_left_was_never_sent_is_not_in_its_usage(face: str) -> None:
    gate, all_said = anyio.Event(), anyio.Event()

    def script() -> Iterator[Step]:
        yield Started(ECHO, prompt_tokens=3)
        yield TextDelta("he", 2)
        yield gate
        # Half of it is more than the sockets of both sides hold.
        yield from [TextDelta("x" * 2**20, 5)] * 48
        all_said.set()
        yield anyio.Event()

    async with serving(ScriptedProvider(script()), stream_replay_bytes=2**27) as served:
        path, fields = FACES[face]
        request = served.client.build_request("POST", path, json={**HELLO, **fields})
        async with await anyio.connect_tcp("127.0.0.1", served.port) as stream:
            length = len(request.content)
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
            await stream.send(head.encode() + request.content)
            seen = b""
            while b'"he"' not in seen:
                seen += await stream.receive()
            gate.set()
            await all_said.wait()
        session = await served.last_session()
    assert session.closed is not None and session.closed.end is StreamEnd.CANCELLED
    assert session.closed.usage.prompt_tokens == 3
    assert 2 <= session.closed.usage.completion_tokens < 2 + 5 * 24


async def test_an_answer_in_one_piece_that_nobody_got_used_no_tokens_of_an_answer() -> None:
    reached = anyio.Event()

    def script() -> Iterator[Step]:
        yield Started(ECHO, prompt_tokens=3)
        yield TextDelta("he", 2)
        reached.set()
        yield anyio.Event()

    async with serving(ScriptedProvider(script())) as served:
        await _leave_when(served, reached, "native whole")
        session = await served.last_session()
    assert session.closed is not None and session.closed.usage == Usage(3, 0)
