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

from gateway.core.errors import GatewayError
from gateway.core.events import Event
from gateway.http.disconnect import unless_disconnected
from gateway.problems import Problem, describe
from gateway.services.streams import LiveStream
from gateway.settings import Settings

logger = logging.getLogger(__name__)

FIRST_BYTES_WAIT_S = 1.0
"""How long the status may wait for the stream to show that it works; then 200 and pings go out."""

EXIT_GRACE_S = 2.0
"""How long a server that exits leaves a stream to write the end that draining gave it."""


class EventEncoder(Protocol):
    """One face's form of the events of one stream; knows what it has said already."""

    preamble: bytes

    def encode(self, events: Sequence[Event]) -> bytes:
        """Return the frames of `events`; empty when this face shows none of them."""
        ...

    def fail(self, problem: Problem) -> bytes:
        """Return the frames of a failure, the last ones."""
        ...

    def end(self) -> bytes:
        """Return what is still to say when no event is left: the end of a cancelled stream."""
        ...


class StreamReply(Response):
    """Opens a stream and sends it. The stream is cancelled in whatever way this call ends.

    What fails before the first event that the face shows is raised, for a reply with a real
    status; anything later is a frame.
    """

    def __init__(
        self,
        open_stream: Callable[[], LiveStream],
        make_encoder: Callable[[LiveStream], EventEncoder],
        settings: Settings,
    ) -> None:
        super().__init__()
        self._open_stream = open_stream
        self._make_encoder = make_encoder
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._open_stream() as live:
            encoder = self._make_encoder(live)
            opening = await unless_disconnected(receive, lambda: _open(live, encoder))
            async with aclosing(_write(live, encoder, opening)) as body:
                try:
                    await self._event_source(body)(scope, receive, send)
                except SendTimeoutError:
                    logger.info("stream %s: its reader took nothing for too long", live.id)

    def _event_source(self, body: AsyncGenerator[bytes, None]) -> EventSourceResponse:
        return EventSourceResponse(
            body,
            headers={"Cache-Control": "no-cache"},
            ping=self._settings.ping_interval_s,
            ping_message_factory=lambda: ServerSentEvent(comment="ping", sep="\n"),
            sep="\n",
            send_timeout=self._settings.send_timeout_s,
            shutdown_grace_period=EXIT_GRACE_S,
        )


async def _open(live: LiveStream, encoder: EventEncoder) -> bytes:
    """Return the first frames; none when the stream has nothing to show for a while."""
    frames = b""
    with anyio.move_on_after(FIRST_BYTES_WAIT_S):
        while not frames:
            events = await live.read()
            frames = encoder.encode(events) if events else encoder.end()
    return frames


async def _write(
    live: LiveStream, encoder: EventEncoder, opening: bytes
) -> AsyncGenerator[bytes, None]:
    frames, is_last = encoder.preamble + opening, False
    while True:
        if frames:
            yield frames
        if is_last:
            return
        # Neither reading nor writing need suspend; without this the reader's leaving may never
        # be seen, nor any other request served.
        await anyio.lowlevel.checkpoint()
        frames, is_last = await _next(live, encoder)


async def _next(live: LiveStream, encoder: EventEncoder) -> tuple[bytes, bool]:
    """Return the frames of all events that are ready, and whether they are the last."""
    try:
        events = await live.read()
    except GatewayError as error:
        return encoder.fail(describe(error)), True
    return (encoder.encode(events), False) if events else (encoder.end(), True)
