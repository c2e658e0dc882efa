"""A live stream onto a connection whose server tells how full it is: each event is written in the
turn in which it came, by whoever brought it. There is no task: all of it is callbacks.

The other way, for any ASGI server, is `sse_pull`. Both send the same bytes.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

from gateway.core.errors import GatewayError, StreamTakenOver
from gateway.core.events import Event, Waiting
from gateway.core.turns import LARGE_BYTES
from gateway.http.disconnect import Connection
from gateway.http.sse_events import FIRST_BYTES_WAIT_S, PING, EventEncoder
from gateway.http.sse_wire import SseWire
from gateway.problems import describe
from gateway.services.live import StreamReader
from gateway.settings import Settings

logger = logging.getLogger(__name__)


class SseFlow:
    """Writes what one reader reads, from `begin` until the stream or this reading of it ends, or
    until `stop`. A client who is told nothing for long gets a ping."""

    __slots__ = (
        "_connection",
        "_encoder",
        "_has_begun",
        "_is_over",
        "_is_to_begin",
        "_is_to_flush",
        "_loop",
        "_lose_patience",
        "_opening",
        "_over",
        "_patience",
        "_pinger",
        "_reader",
        "_settings",
        "_wire",
        "_wrote_at",
        "_wrote_in",
    )

    def __init__(
        self,
        reader: StreamReader,
        encoder: EventEncoder,
        wire: SseWire,
        connection: Connection,
        settings: Settings,
        *,
        over: Callable[[Exception | None], None],
        lose_patience: Callable[[], None],
    ) -> None:
        """`over` is called once, and nothing is written after it: with None when all is written,
        the end included; with a GatewayError that came before anything was written, and is for a
        reply with a real status; or with a defect of ours. Not if `stop` comes first.

        `lose_patience` is called when the client takes nothing for long; to `stop` is for the
        caller.
        """
        self._reader = reader
        self._encoder = encoder
        self._wire = wire
        self._connection = connection
        self._settings = settings
        self._over = over
        self._lose_patience = lose_patience
        self._loop = asyncio.get_running_loop()
        self._is_over = False
        self._has_begun = False
        self._opening = encoder.preamble
        self._wrote_at = 0.0
        self._wrote_in = -1
        self._pinger: asyncio.TimerHandle | None = None
        self._patience: asyncio.TimerHandle | None = None
        self._is_to_begin = False
        self._is_to_flush = False

    def begin(self, *, awaits_first: bool) -> None:
        """Write what there is and from now on what comes; it may be over before this returns. With
        `awaits_first` nothing is written before there is an event to show, for a while."""
        self._connection.flow_changed = self._note_flow
        self._connection.watch(self._note_loss)
        self._reader.listen(self)
        if awaits_first:
            self._pinger = self._loop.call_later(FIRST_BYTES_WAIT_S, self._ping)
        else:
            self._begin()
        self._flush()

    def stop(self) -> None:
        """Write no more, and tell nobody. Harmless once it is over."""
        if self._is_over:
            return
        self._is_over = True
        self._connection.flow_changed = None
        self._connection.unwatch(self._note_loss)
        self._reader.listen(None)
        for timer in (self._pinger, self._patience):
            if timer is not None:
                timer.cancel()

    def _begin(self) -> None:
        """Write the head of the reply, and what there is to follow it."""
        if self._has_begun or self._is_over:
            return
        self._is_to_begin = self._connection.is_full
        if self._is_to_begin:
            return
        self._has_begun = True
        self._await_ping()
        opening, self._opening = self._opening, b""
        if opening:
            self._wrote_in = self._connection.turns.number()
        self._wire.start(self._reader.stream.id)
        self._write(opening)

    def heed(self) -> None:
        """Write what came at once, and what else comes in this turn together; unless nothing else
        does, since the stream has ended."""
        if self._reader.stream.is_ended or self._wrote_in != self._connection.turns.number():
            self._flush()
        else:
            self._flush_soon()

    def is_ready(self, size: int) -> bool:
        connection = self._connection
        if size > LARGE_BYTES or connection.is_full or connection.is_lost:
            return False
        turn = connection.turns.number()
        if self._wrote_in == turn:
            return False
        self._wrote_in = turn
        return True

    def hear(self, events: Sequence[Event]) -> None:
        try:
            frames = self._encoder.encode(events)
            if self._has_begun:
                self._write(frames)
            else:
                self._open(frames, events)
        except Exception as defect:
            self._give_up_on(defect)

    def _flush_soon(self) -> None:
        if not self._is_to_flush:
            self._is_to_flush = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Write what is ready to be read, as far as the client takes it."""
        self._is_to_flush = False
        connection = self._connection
        if connection.is_full or connection.is_lost or self._is_over:
            return
        size = self._reader.stream.unread_bytes
        if size > LARGE_BYTES and not connection.turns.admit(size, self._flush):
            return
        self._reader.confirm()  # what was written before: there is room again
        try:
            try:
                events = self._reader.take()
            except GatewayError as error:
                self._fail(error)
            else:
                if events is not None:
                    self._tell(events)
        except Exception as defect:
            self._give_up_on(defect)

    def _tell(self, events: Sequence[Event]) -> None:
        if not events:
            self._begin()
            self._end(b"")
            return
        self._wrote_in = self._connection.turns.number()
        self.hear(events)
        stream = self._reader.stream
        if stream.has_unread:
            self._flush_soon()  # not at once: there are others
        elif stream.is_ended:
            self._flush()

    def _open(self, frames: bytes, events: Sequence[Event]) -> None:
        """Begin the reply with `frames`, or keep them: then later failures still have a status."""
        self._opening += frames
        is_waiting = all(isinstance(event, Waiting) for event in events)
        if frames and (self._encoder.begins_with_waiting or not is_waiting):
            self._begin()

    def _fail(self, error: GatewayError) -> None:
        if not self._has_begun:
            self._finish(error)
            return
        is_end = not isinstance(error, StreamTakenOver)
        self._end(self._encoder.fail(describe(error), is_end=is_end))

    def _end(self, frames: bytes) -> None:
        self._wire.end(frames)
        self._finish(None)

    def _give_up_on(self, defect: Exception) -> None:
        """Let a defect of ours end the reading, and not who brought the events."""
        if self._is_over:
            logger.error("stream %s: its end failed", self._reader.stream.id, exc_info=defect)
            return
        self.stop()
        self._reader.leave()
        self._over(defect)

    def _finish(self, error: GatewayError | None) -> None:
        self.stop()
        self._over(error)

    def _write(self, frames: bytes) -> None:
        if frames:
            self._wrote_at = self._loop.time()
            self._wire.write(frames)

    def _note_loss(self) -> None:
        """Let what was written count as taken, unless the client had still to take it."""
        if not self._connection.is_full:
            self._reader.confirm()

    def _note_flow(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        if self._connection.is_full:
            limit_s = self._settings.send_timeout_s
            self._patience = self._loop.call_later(limit_s, self._give_up)
            return
        if self._is_to_begin:
            self._begin()
        self._flush()

    def _give_up(self) -> None:
        logger.info("stream %s: its reader took nothing for long", self._reader.stream.id)
        self._lose_patience()

    def _await_ping(self) -> None:
        every_s = self._settings.ping_interval_s
        if self._pinger is not None:
            if every_s >= FIRST_BYTES_WAIT_S:
                return  # it comes early enough, and looks what to wait for: a timer costs
            self._pinger.cancel()
        self._pinger = self._loop.call_later(every_s, self._ping)

    def _ping(self) -> None:
        if not self._has_begun:
            self._pinger = None
            self._begin()
            return
        every_s = self._settings.ping_interval_s
        left_s = self._wrote_at + every_s - self._loop.time()
        if left_s <= 0:
            left_s = every_s
            if not self._connection.is_full:
                self._write(PING)
        self._pinger = self._loop.call_later(left_s, self._ping)
