"""The writer of event streams lets others run, whatever its stream does."""

import time
from collections.abc import Sequence

import anyio
import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message, Scope

from gateway.core.events import Event, TextDelta
from gateway.core.sessions import SessionOpened
from gateway.core.turns import Turns
from gateway.http.disconnect import CONNECTION, Connection
from gateway.http.native_events import NativeEvents
from gateway.http.sse import StreamReply
from gateway.http.sse_events import PING
from gateway.services.live import LiveStream
from gateway.services.streams import choose_limits
from gateway.settings import Settings


def open_stream(settings: Settings) -> LiveStream:
    return LiveStream(
        SessionOpened("s", "r", "n", "m", 0.0),
        caller="",
        limits=choose_limits(settings),
        left=lambda _: None,
        clock=time.monotonic,
    )


async def never() -> Message:
    await anyio.sleep_forever()
    raise AssertionError("the client stays")


async def test_a_stream_that_always_has_more_lets_other_tasks_run() -> None:
    settings = Settings(stream_buffer_events=4096)
    live = open_stream(settings)
    other_ran = anyio.Event()
    sent: list[Message] = []

    async def other() -> None:
        other_ran.set()

    async def send(message: Message) -> None:
        sent.append(message)
        assert len(sent) < 100, "nobody else ran"
        if other_ran.is_set():
            if not live.is_ended:
                live.end(None)
            return
        # The read does not suspend: there is an event.
        assert live.put([TextDelta("x")]) is None
        if len(sent) == 3:
            tasks.start_soon(other)

    reply = StreamReply(live.attach, NativeEvents, settings, awaits_first=False)
    async with anyio.create_task_group() as tasks:
        await reply({"type": "http"}, never, send)
    assert b'"x"' in sent[2]["body"]
    assert sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


def any_server() -> Scope:
    return {"type": "http"}


def our_server() -> Scope:
    """The scope of a server that tells how full a connection is."""
    return {"type": "http", "headers": [], CONNECTION: Connection(lambda: None, Turns())}


SERVERS = pytest.mark.parametrize("scope", [any_server(), our_server()], ids=["any", "ours"])


@SERVERS
async def test_a_silent_stream_is_pinged_and_a_busy_one_is_not(scope: Scope) -> None:
    settings = Settings(ping_interval_s=0.05)
    live = open_stream(settings)
    bodies: list[bytes] = []

    async def send(message: Message) -> None:
        bodies.append(message.get("body", b""))
        if bodies.count(PING) == 2 and not live.is_ended:
            live.end(None)

    reply = StreamReply(live.attach, NativeEvents, settings, awaits_first=False)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reply, dict(scope), never, send)
            assert live.put([TextDelta("x")]) is None
    assert [b'"x"' in body for body in bodies].index(True) < bodies.index(PING)
    assert b'"cancelled"' in bodies[-2]


async def test_a_client_that_takes_nothing_is_given_up() -> None:
    settings = Settings(send_timeout_s=0.05)
    live = open_stream(settings)

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            await anyio.sleep_forever()

    reply = StreamReply(live.attach, NativeEvents, settings, awaits_first=False)
    with anyio.fail_after(10), pytest.raises(ClientDisconnect):
        await reply({"type": "http"}, never, send)
    assert not live.has_reader


async def test_a_client_that_does_not_take_what_was_sent_is_given_up() -> None:
    settings = Settings(send_timeout_s=0.05, ping_interval_s=0.01)
    live = open_stream(settings)
    scope = our_server()
    connection: Connection = scope[CONNECTION]
    sent: list[Message] = []

    async def send(message: Message) -> None:
        assert not connection.is_full
        sent.append(message)
        connection.set_full(message["type"] == "http.response.body")

    reply = StreamReply(live.attach, NativeEvents, settings, awaits_first=False)
    with anyio.fail_after(10), pytest.raises(ClientDisconnect):
        await reply(scope, never, send)
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert not live.has_reader


async def test_what_comes_while_the_client_is_slow_is_written_once_it_takes_more() -> None:
    settings = Settings(stream_buffer_events=4)
    live = open_stream(settings)
    scope = our_server()
    connection: Connection = scope[CONNECTION]
    sent: list[bytes] = []

    async def send(message: Message) -> None:
        sent.append(message.get("body", b""))

    async def speak() -> None:
        connection.set_full(True)
        said = [TextDelta(str(number)) for number in range(6)]
        wait = live.put(said)
        assert wait is not None, "there is room for four"
        assert not b"".join(sent[2:])
        connection.set_full(False)
        await wait()
        live.end(None)

    reply = StreamReply(live.attach, NativeEvents, settings, awaits_first=False)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reply, scope, never, send)
            await anyio.wait_all_tasks_blocked()
            await speak()
    body = b"".join(sent)
    assert [body.count(b'"%d"' % number) for number in range(6)] == [1] * 6
    assert body.index(b'"5"') < body.index(b'"cancelled"')


async def test_a_defect_of_a_form_ends_the_reading_and_not_who_brought_the_event() -> None:
    class Broken(NativeEvents):
        def encode(self, events: Sequence[Event]) -> bytes:
            raise ZeroDivisionError

    live = open_stream(Settings())

    async def send(message: Message) -> None:
        pass

    async def fail() -> None:
        with pytest.raises(ZeroDivisionError):
            await reply(our_server(), never, send)

    reply = StreamReply(live.attach, Broken, Settings(), awaits_first=False)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fail)
            await anyio.wait_all_tasks_blocked()
            assert live.put([TextDelta("x")]) is None
    assert not live.has_reader
