"""The writer of event streams lets others run, whatever its stream does."""

import time
from contextlib import aclosing

import anyio

from gateway.core.events import TextDelta
from gateway.core.sessions import SessionOpened
from gateway.http.native_events import NativeEvents
from gateway.http.sse import _write
from gateway.services.live import LiveStream
from gateway.services.streams import choose_limits
from gateway.settings import Settings


async def test_a_stream_that_always_has_more_lets_other_tasks_run() -> None:
    live = LiveStream(
        SessionOpened("s", "r", "n", "m", 0.0),
        caller="",
        limits=choose_limits(Settings(stream_buffer_events=8)),
        left=lambda _: None,
        clock=time.monotonic,
    )
    other_ran = anyio.Event()

    async def other() -> None:
        other_ran.set()

    async with (
        anyio.create_task_group() as tasks,
        aclosing(_write(live.attach(), NativeEvents(live), b"")) as frames,
    ):
        await anext(frames)
        tasks.start_soon(other)
        # Neither the put nor the read suspends: there is room, and there is an event.
        await live.put(TextDelta("x"))
        assert b'"x"' in await anext(frames)
        assert other_ran.is_set()
