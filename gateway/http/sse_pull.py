"""A live stream by any ASGI server: a task reads, sends and waits.

Servers that tell how full a connection is need no such task; see `sse_flow`. Both send the same
bytes.
"""

import asyncio
import logging

import anyio
import anyio.lowlevel
from starlette.types import Send

from gateway.core.errors import GatewayError, StreamTakenOver
from gateway.core.events import Waiting
from gateway.http.sse_events import FIRST_BYTES_WAIT_S, PING, EventEncoder, start_message
from gateway.problems import describe
from gateway.services.live import StreamReader
from gateway.settings import Settings

logger = logging.getLogger(__name__)

LARGE_BYTES = 16 * 2**10
"""What is written at once and may count as sent before the connection took it: less than the
64 KiB that servers buffer."""


async def pull(
    reader: StreamReader,
    encoder: EventEncoder,
    send: Send,
    work: anyio.CancelScope,
    settings: Settings,
    *,
    awaits_first: bool,
) -> None:
    """Send what `reader` reads, to its end; `work` is cancelled when the client takes nothing for
    long. With `awaits_first` a failure before the first event is raised, and nothing was sent."""
    opening = await _open(reader, encoder) if awaits_first else b""
    await send(start_message(reader.stream.id))
    frames, is_last = encoder.preamble + opening, False
    writer = _Writer(send, work, settings.send_timeout_s, reader.stream.id)
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
        frames, is_last = await _next(reader, encoder, settings.ping_interval_s)
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
