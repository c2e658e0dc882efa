"""A live stream as server-sent events: when it begins, pings, and that its end is never lost.

How an event looks is for each face's encoder. Nothing is ever compressed or buffered here.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

import anyio
import anyio.lowlevel
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from gateway.core.errors import GatewayError, StreamTakenOver
from gateway.core.events import Event, Waiting
from gateway.http.decision_ids import note_decision
from gateway.http.disconnect import cancelled_on_disconnect
from gateway.problems import Problem, describe
from gateway.services.live import LiveStream, StreamReader
from gateway.settings import Settings

logger = logging.getLogger(__name__)

STREAM_ID = "X-Stream-Id"

FIRST_BYTES_WAIT_S = 1.0
"""How long the status may wait for the stream to show that it works; then 200 and pings go out."""

LARGE_BYTES = 16 * 2**10
"""What is written at once and may count as sent before the connection took it: less than the
64 KiB that servers buffer."""

PING = b": ping\n\n"


class EventEncoder(Protocol):
    """One face's form of the events of one stream; knows what it has said already."""

    preamble: bytes
    begins_with_waiting: bool
    """Whether the reply begins with the first `Waiting`, or later failures still have a status."""

    def encode(self, events: Sequence[Event]) -> bytes:
        """Return the frames of `events`; empty when this face shows none of them."""
        ...

    def fail(self, problem: Problem, *, is_end: bool) -> bytes:
        """Return the frames of a failure, the last ones of this reading; `is_end` tells whether
        the stream itself ended with it."""
        ...


class StreamReply(Response):
    """Attaches a reader and sends what it reads. The reader leaves in whatever way this call ends.

    With `awaits_first`, what fails before the first event that the face shows is raised, for a
    reply with a real status; anything later is a frame.

    One task and one that waits for the client to leave, because thousands of these wait at once:
    pings and the limit of a send are timers, and not tasks. A server that exits has drained the
    streams before, so each has an end to write, and cuts who does not take it.
    """

    def __init__(
        self,
        attach: Callable[[], StreamReader],
        make_encoder: Callable[[LiveStream], EventEncoder],
        settings: Settings,
        *,
        awaits_first: bool = True,
    ) -> None:
        super().__init__()
        self._attach = attach
        self._make_encoder = make_encoder
        self._settings = settings
        self._awaits_first = awaits_first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._attach() as reader:
            note_decision(scope, reader.stream.id)
            encoder = self._make_encoder(reader.stream)
            with cancelled_on_disconnect(scope, receive) as work:
                opening = await _open(reader, encoder) if self._awaits_first else b""
                await send(_start(reader.stream.id))
                writer = _Writer(send, work, self._settings.send_timeout_s, reader.stream.id)
                await self._write(reader, encoder, opening, writer)
                return
            raise ClientDisconnect

    async def _write(
        self, reader: StreamReader, encoder: EventEncoder, opening: bytes, writer: "_Writer"
    ) -> None:
        frames, is_last = encoder.preamble + opening, False
        while not is_last:
            if frames:
                await writer.write(frames)
            if len(frames) > LARGE_BYTES:
                await writer.write(b"")  # waits until the connection took what was written before
            if reader.stream.has_unread:
                # Neither reading nor writing need suspend; without this the client's leaving may
                # never be seen, nor any other request served.
                await anyio.lowlevel.checkpoint()
                reader.confirm()
            else:
                writer.confirm_soon(reader)
            frames, is_last = await _next(reader, encoder, self._settings.ping_interval_s)
        await writer.write(frames, is_last=True)


class _Writer:
    """Sends the frames of one reply; gives up a client that takes nothing for `timeout_s`."""

    def __init__(
        self, send: Send, work: anyio.CancelScope, timeout_s: float, stream_id: str
    ) -> None:
        self._send = send
        self._work = work
        self._timeout_s = timeout_s
        self._stream_id = stream_id
        self._loop = asyncio.get_running_loop()

    async def write(self, frames: bytes, *, is_last: bool = False) -> None:
        if self._work.cancel_called:
            # A stream that always has more wakes its reader before a cancellation can reach it.
            await anyio.lowlevel.checkpoint()
        timer = self._loop.call_later(self._timeout_s, self._give_up)
        try:
            await self._send(
                {"type": "http.response.body", "body": frames, "more_body": not is_last}
            )
        finally:
            timer.cancel()

    def confirm_soon(self, reader: StreamReader) -> None:
        """Let what was written count as taken, unless the client turns out to have left by then:
        the server takes all frames."""
        self._loop.call_soon(self._confirm, reader)

    def _confirm(self, reader: StreamReader) -> None:
        if not self._work.cancel_called:
            reader.confirm()

    def _give_up(self) -> None:
        logger.info("stream %s: its reader took nothing for long", self._stream_id)
        self._work.cancel()


def _start(stream_id: str) -> Message:
    headers = [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        (b"connection", b"keep-alive"),
        (b"x-accel-buffering", b"no"),
        (STREAM_ID.lower().encode(), stream_id.encode()),
    ]
    return {"type": "http.response.start", "status": 200, "headers": headers}


async def _open(reader: StreamReader, encoder: EventEncoder) -> bytes:
    """Return the first frames: up to one that the reply may begin with, or of a second."""
    frames = b""
    with anyio.move_on_after(FIRST_BYTES_WAIT_S):
        while events := await reader.read():
            frames += encoder.encode(events)
            is_waiting = all(isinstance(event, Waiting) for event in events)
            if frames and (encoder.begins_with_waiting or not is_waiting):
                break
    return frames


async def _next(reader: StreamReader, encoder: EventEncoder, ping_s: float) -> tuple[bytes, bool]:
    """Return the frames of all events that are ready, and whether they are the last; a ping when
    there are none for `ping_s`."""
    try:
        events = await reader.read_within(ping_s)
    except GatewayError as error:
        is_end = not isinstance(error, StreamTakenOver)
        return encoder.fail(describe(error), is_end=is_end), True
    if events is None:
        return PING, False
    return encoder.encode(events), not events
