"""A live stream as server-sent events: when it begins, pings, and that its end is never lost.

How an event looks is for each face's encoder. Nothing is ever compressed or buffered here.
"""

import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Protocol

import anyio
import anyio.lowlevel
from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import SendTimeoutError
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.core.errors import GatewayError, StreamTakenOver
from gateway.core.events import Event, Waiting
from gateway.http.disconnect import unless_disconnected
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

EXIT_GRACE_S = 2.0
"""How long a server that exits leaves a stream to write the end that draining gave it."""


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
            encoder = self._make_encoder(reader.stream)
            opening = b""
            if self._awaits_first:
                opening = await unless_disconnected(receive, lambda: _open(reader, encoder))
            async with aclosing(_write(reader, encoder, opening)) as body:
                try:
                    await self._event_source(reader.stream.id, body)(scope, receive, send)
                except SendTimeoutError:
                    logger.info("stream %s: its reader took nothing for long", reader.stream.id)

    def _event_source(
        self, stream_id: str, body: AsyncGenerator[bytes, None]
    ) -> EventSourceResponse:
        return EventSourceResponse(
            body,
            headers={"Cache-Control": "no-cache", STREAM_ID: stream_id},
            ping=self._settings.ping_interval_s,
            ping_message_factory=lambda: ServerSentEvent(comment="ping", sep="\n"),
            sep="\n",
            send_timeout=self._settings.send_timeout_s,
            shutdown_grace_period=EXIT_GRACE_S,
        )


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


async def _write(
    reader: StreamReader, encoder: EventEncoder, opening: bytes
) -> AsyncGenerator[bytes, None]:
    frames, is_last = encoder.preamble + opening, False
    while True:
        if frames:
            yield frames
        if len(frames) > LARGE_BYTES:
            yield b""  # waits until the connection took what was written before
        if is_last:
            return
        # Neither reading nor writing need suspend; without this the reader's leaving may never
        # be seen, nor any other request served. Who left ends here: his server takes all frames.
        await anyio.lowlevel.checkpoint()
        reader.confirm()
        frames, is_last = await _next(reader, encoder)


async def _next(reader: StreamReader, encoder: EventEncoder) -> tuple[bytes, bool]:
    """Return the frames of all events that are ready, and whether they are the last."""
    try:
        events = await reader.read()
    except GatewayError as error:
        is_end = not isinstance(error, StreamTakenOver)
        return encoder.fail(describe(error), is_end=is_end), True
    return encoder.encode(events), not events
