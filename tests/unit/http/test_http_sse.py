"""The writer of event streams lets others run, whatever its stream does."""

import time

import anyio
import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message

from gateway.core.events import TextDelta
from gateway.core.sessions import SessionOpened
from gateway.http.native_events import NativeEvents
from gateway.http.sse import PING, StreamReply
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
        # Neither the put nor the read suspends: there is room, and there is an event.
        await live.put(TextDelta("x"))
        if len(sent) == 3:
            tasks.start_soon(other)

    reply = StreamReply(live.attach, NativeEvents, settings, awaits_first=False)
    async with anyio.create_task_group() as tasks:
        await reply({"type": "http"}, never, send)
    assert b'"x"' in sent[2]["body"]
    assert sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_a_silent_stream_is_pinged_and_a_busy_one_is_not() -> None:
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
            tasks.start_soon(reply, {"type": "http"}, never, send)
            await live.put(TextDelta("x"))
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
