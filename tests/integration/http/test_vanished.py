"""F13, F14: two hundred clients that vanish without a word, or take nothing; one reads."""

import ctypes
import json
import resource
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager

import anyio
import anyio.to_thread
import pytest

from gateway.core.events import Started, TextDelta
from gateway.core.states import StreamEnd
from tests.integration.http.loop_turns import LoopTurns
from tests.integration.http.serving import Served, serving
from tests.integration.http.sse_reader import HELLO, NATIVE
from tests.scripted_provider import ECHO, ScriptedProvider, Step, answer

MANY = 200
SO_ATTACH_FILTER = 26  # Linux: socket(7)
PIECE = 20_000
BOUNDS = {"send_timeout_s": 3.0, "stream_buffer_events": 4, "stream_replay_bytes": 2**16}
HELD_BYTES = 450_000
"""Of each: 64 KiB in the server's buffer and a write of four events beyond, 64 KiB for one who may
come back, four events unread; twice, for what malloc leaves between."""


class _Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_uint16),
        ("jt", ctypes.c_uint8),
        ("jf", ctypes.c_uint8),
        ("k", ctypes.c_uint32),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("first", ctypes.POINTER(_Instruction)))


def cut_the_cable(client: socket.socket) -> None:
    """Let the client's system see nothing any more that comes to its socket: it confirms nothing,
    and does not say that it is gone."""
    return_nothing = (_Instruction * 1)(_Instruction(0x06, 0, 0, 0))
    program = _Program(1, return_nothing)
    client.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, bytes(program))


class Two(ScriptedProvider):
    """Says `flood` to those with the seed 1 and a whole answer to the others."""

    def __init__(self, flood: Callable[[], Iterator[Step]]) -> None:
        super().__init__()
        self.flood = flood

    async def stream(self, request, ref):  # type: ignore[no-untyped-def]
        self.script = self.flood() if request.options.seed else answer("hi")
        async for event in super().stream(request, ref):
            yield event


def resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def message(path: str) -> bytes:
    body = json.dumps({**HELLO, "options": {"seed": 1}}).encode()
    head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    return head % (path.encode(), len(body)) + body


@asynccontextmanager
async def asking(served: Served, paths: list[str]) -> AsyncIterator[list[socket.socket]]:
    """A client for each path, which reads nothing; returns once all streams run."""
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.socket()) for _ in paths]

        def ask() -> None:
            for client, path in zip(clients, paths, strict=True):
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.connect(("127.0.0.1", served.port))
                client.sendall(message(path))

        await anyio.to_thread.run_sync(ask)
        while served.gateway.streams.live_count < len(paths):
            await anyio.sleep(0.01)
        yield clients


async def wait_until_all_ended(served: Served, count: int) -> None:
    await served.gateway.streams.wait_idle()
    assert await served.gateway.recorder.flush(5)
    sessions = await served.gateway.sessions.recent(count + 10)
    ends = [session.closed and session.closed.end for session in sessions]
    assert ends.count(StreamEnd.CANCELLED) == count


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has filters of sockets")
async def test_clients_that_vanished_without_a_word_are_noticed(quick_turns: LoopTurns) -> None:
    """Half wait for a whole answer and are sent nothing, half are sent pings."""
    gate = anyio.Event()
    provider = Two(lambda: iter([Started(ECHO), gate]))
    paths = ["/api/v1/generate", NATIVE] * (MANY // 2)
    async with (
        serving(provider, vanished_s=4.0, ping_interval_s=0.5, patience_s=60) as served,
        asking(served, paths) as clients,
    ):
        for client in clients:
            cut_the_cable(client)
        quick = await served.client.post(NATIVE, json=HELLO)
        assert b"event: finished" in quick.content
        assert served.gateway.streams.live_count == MANY
        await wait_until_all_ended(served, MANY)


async def test_hundreds_that_take_nothing_hold_a_bounded_part_of_the_memory() -> None:
    """F12: the models wait; who reads is served meanwhile, and the others are cut in time."""

    def flood() -> Iterator[Step]:
        yield Started(ECHO)
        while True:
            yield TextDelta("x" * PIECE)

    provider = Two(flood)
    async with (
        serving(provider, patience_s=90, **BOUNDS) as served,
        asking(served, [NATIVE] * MANY),
    ):
        before_bytes = resident_bytes()
        quick = await served.client.post(NATIVE, json=HELLO)
        assert b"event: finished" in quick.content
        await wait_until_all_ended(served, MANY)
        grown_bytes = resident_bytes() - before_bytes
    each = f"{grown_bytes / MANY / 1000:.0f} KB and {provider.said / MANY:.0f} events for each"
    sys.stderr.write(f"\n{each}\n")
    assert grown_bytes < MANY * HELD_BYTES
