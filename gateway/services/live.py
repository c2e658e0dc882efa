"""A stream as its reader sees it, and the reader: one at a time, from any event that is kept.

What runs the model and writes the records is `streams`.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from functools import partial
from typing import Protocol

import anyio
import anyio.lowlevel
import msgspec

from gateway.core.errors import GatewayError, StreamGap, StreamTakenOver
from gateway.core.events import Event, Finished, Timings, Usage
from gateway.core.sessions import SessionOpened
from gateway.core.telling import Wait
from gateway.services.bell import Bell
from gateway.services.replay import ReplayBuffer, weigh
from gateway.services.tally import Tally

FEW_EVENTS = 16
"""So many may go past the buffer together: more are large, and weighing them is for nothing."""


class StreamLimits(msgspec.Struct, frozen=True):
    """Bounds of all streams (`max_streams`, `kept_bytes`) and of each; times are seconds.

    `buffer_events` are held for a reader who is slow; `replay_events` and `replay_bytes` for one
    who may come back. Without a reader a stream goes on for `resume_s`, a detached one for
    `detached_s`; ended, it can be read for `keep_s`.
    """

    max_streams: int
    buffer_events: int
    replay_events: int
    replay_bytes: int
    kept_bytes: int
    resume_s: float
    detached_s: float
    keep_s: float


class Listener(Protocol):
    """Who hears at once what comes, for the one who reads. Nothing of it may block or fail."""

    def heed(self) -> None:
        """A `take` may give something else than the one before."""
        ...

    def is_ready(self, size: int) -> bool:
        """Tell whether events of about so many bytes can be written now. If so, what was read
        before them was taken by the client's connection, as `StreamReader.confirm` tells; and who
        asked tells them at once: a listener may be ready once a turn only."""
        ...

    def hear(self, events: Sequence[Event]) -> None:
        """These count as read. Is told only what it is ready for, and nothing is unread then."""
        ...


class LiveStream:
    """One stream, from its opening until nobody can read it any more.

    `is_resumable`: another reader may go on where one left; `is_detached`: it needs none;
    `is_awaited`: somebody waits for the whole answer, and nobody can read it.
    """

    __slots__ = (
        "_buffer",
        "_changed",
        "_clock",
        "_handed_tokens",
        "_is_stopped",
        "_left",
        "_limits",
        "_listener",
        "_reader",
        "_stop",
        "caller",
        "error",
        "id",
        "is_awaited",
        "is_detached",
        "is_ended",
        "is_resumable",
        "opened",
        "tally",
    )

    def __init__(
        self,
        opened: SessionOpened,
        *,
        caller: str,
        limits: StreamLimits,
        is_resumable: bool = False,
        is_detached: bool = False,
        is_awaited: bool = False,
        left: Callable[["LiveStream"], None],
        clock: Callable[[], float],
    ) -> None:
        """`left` is told when the reader left and no other took its place."""
        self.opened = opened
        self.id = opened.id
        self.caller = caller
        self.is_resumable = is_resumable
        self.is_detached = is_detached
        self.is_awaited = is_awaited
        self.is_ended = False
        self.error: GatewayError | None = None
        self.tally = Tally(opened_at=clock())
        self._limits = limits
        self._left = left
        self._clock = clock
        self._buffer = ReplayBuffer(
            max_events=limits.replay_events, max_bytes=limits.replay_bytes, keeps=is_resumable
        )
        self._reader: StreamReader | None = None
        self._listener: Listener | None = None
        self._handed_tokens = 0
        self._changed = Bell()
        self._stop: Callable[[], None] | None = None
        self._is_stopped = False

    @property
    def timings(self) -> Timings:
        """The timings of the whole stream, or so far while it runs."""
        return self.tally.timings(self._clock())

    @property
    def usage(self) -> Usage:
        """What the stream used, or so far while it runs.

        The model's own count once it finished. Else all that was said, where a reader has it or is
        about to; where none is there, what was handed to those that were.
        """
        if self.tally.finished is not None or self.has_reader or self.is_awaited:
            return self.tally.usage
        return Usage(self.tally.usage.prompt_tokens, self._handed_tokens)

    @property
    def has_reader(self) -> bool:
        return self._reader is not None

    @property
    def has_unread(self) -> bool:
        """Whether a read would find events at once."""
        return self._buffer.last_id > self._buffer.position

    @property
    def unread_bytes(self) -> int:
        """About how many bytes a read would return."""
        return self._buffer.unread_bytes

    @property
    def last_id(self) -> int:
        """The number of the last event; an error that ends the stream has one, too."""
        return self._buffer.last_id + (self.error is not None and self.is_ended)

    @property
    def size_bytes(self) -> int:
        return self._buffer.size_bytes

    def is_delivered(self, after: int) -> bool:
        """Tell whether nothing follows event `after`, nor ever will."""
        return self.is_ended and after == self.last_id

    def attach(self, after: int = 0) -> "StreamReader":
        """Return the reader of all events after number `after`; the one before it ends.

        Raises StreamGap when they are no longer kept, InvalidRequest for a number to come.
        """
        if self.is_awaited:
            raise StreamGap("The answer goes in one piece to who asked for it.")
        self._buffer.seek(after)
        self._note_handed()  # who names an event has had it
        self._reader = StreamReader(self)
        self._show()  # the reader before sees that it is none
        self._listener = None
        return self._reader

    async def wait_attached(self) -> None:
        """Wait until there is a reader again, or no need for one."""
        while self._reader is None and not self.is_ended:
            await self._changed.wait()

    def stop_by(self, stop: Callable[[], None]) -> None:
        """Have `stop` called when the model is to be stopped, which may be at once; for the owner
        of the stream only."""
        self._stop = stop
        if self._is_stopped:
            stop()

    def cancel(self) -> None:
        """Stop the model; the reader sees `Finished` with the reason `cancelled`. Harmless after
        the end."""
        if not self.is_ended:
            self._is_stopped = True
            if self._stop is not None:
                self._stop()

    def forsake(self) -> None:
        """Do as `cancel`, for who waited for the whole answer and has left."""
        self.is_awaited = False
        self.cancel()

    def abort(self, error: GatewayError) -> None:
        """Stop the model and let the reader see `error` as the end."""
        if not self.is_ended and self.error is None:
            self.error = error
            self.cancel()

    def put(self, events: Sequence[Event]) -> Wait | None:
        """Add events as far as there is room; return how to wait until the rest is added, too. For
        the owner of the stream only."""
        listener, buffer = self._listener, self._buffer
        if listener is not None and not buffer.unread_bytes and len(events) <= FEW_EVENTS:
            sizes = [weigh(events[0])] if len(events) == 1 else list(map(weigh, events))
            if listener.is_ready(sum(sizes)):
                # Past the buffer, in which nearly every token would be for a moment only.
                tally = self.tally
                self._handed_tokens = tally.said_tokens  # nothing of that is unread
                tally.observe(events, self._clock())
                buffer.append_read(events, sizes)
                listener.hear(events)
                return None
        left = self._append(events)
        return partial(self._put_later, left) if left else None

    def observe(self, events: Sequence[Event]) -> None:
        """Count events that no reader sees."""
        self.tally.observe(events, self._clock())

    def _append(self, events: Sequence[Event]) -> Sequence[Event]:
        """Add events as far as there is room; return the others."""
        most = self._most_unread
        left: Sequence[Event] = ()
        for place, event in enumerate(events):
            if not self._buffer.has_room(most):
                events, left = events[:place], events[place:]
                break
            self._buffer.append(event)
        # Only now: what was cut off before the reader could have it does not count.
        self.tally.observe(events, self._clock())
        self._show()
        return left

    async def _put_later(self, events: Sequence[Event]) -> None:
        while events:
            while not self._buffer.has_room(self._most_unread):
                await self._changed.wait()
            events = self._append(events)

    def _show(self) -> None:
        """Let everybody see what changed."""
        self._changed.ring()
        if self._listener is not None:
            self._listener.heed()

    def end(self, error: GatewayError | None) -> None:
        """Nothing follows, but `error` if there is one; for the owner of the stream only."""
        self.tally.close(self._clock())
        if error is None and self.tally.finished is None:
            # All that was said: whoever reads this event has read the rest.
            self._buffer.append(Finished("cancelled", self.tally.usage))
        self.error = error.renewed() if error else None
        self.is_ended = True
        self._stop = None  # the owner, who knows this stream: work for the collector
        self._show()

    async def read_by(
        self, reader: "StreamReader", most: int, within_s: float | None = None
    ) -> list[Event] | None:
        """Return what `StreamReader.read_within` promises."""
        while (events := self.take_by(reader, most)) is None:
            if not await self._changed.wait(within_s):
                break
        return events

    def take_by(self, reader: "StreamReader", most: int) -> list[Event] | None:
        """Return what `StreamReader.take` promises."""
        if self._reader is not reader:
            raise StreamTakenOver("Another reader goes on with this stream.")
        if events := self._buffer.take(most or self._limits.buffer_events):
            self._changed.ring()
            return events
        if not self.is_ended:
            return None
        if self.error is not None:
            raise self.error.renewed()
        return []

    def listen_by(self, reader: "StreamReader", listener: Listener | None) -> None:
        """Do what `StreamReader.listen` promises; nothing for a reader that was replaced."""
        if self._reader is reader:
            self._listener = listener

    def confirm_by(self, reader: "StreamReader") -> None:
        """Do what `StreamReader.confirm` promises; nothing for a reader that was replaced."""
        if self._reader is reader:
            self._note_handed()

    def leave_by(self, reader: "StreamReader") -> None:
        """Let `reader` go; who was replaced has left already."""
        if self._reader is reader:
            self._reader = self._listener = None
            self._changed.ring()  # there may be more room now
            self._left(self)

    @property
    def _most_unread(self) -> int:
        is_read = self.has_reader or not self.is_resumable
        return self._limits.buffer_events if is_read else self._limits.replay_events

    def _note_handed(self) -> None:
        """Take note that every event before the reader's position was handed over. A reader that
        began further back counts from where the farthest one was."""
        handed = self.tally.said_tokens - self._buffer.unread_tokens
        self._handed_tokens = max(handed, self._handed_tokens)


class StreamReader:
    """Reads one stream; use it as `async with`, or call `leave`."""

    __slots__ = ("stream",)

    def __init__(self, stream: LiveStream) -> None:
        self.stream = stream

    async def __aenter__(self) -> "StreamReader":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.leave()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self._each()

    async def _each(self) -> AsyncGenerator[Event, None]:
        while events := await self.read():
            for event in events:
                yield event

    async def read(self, most: int = 0) -> list[Event]:
        """Return events that are ready, waiting for the first; an empty list is the end. `most` is
        how many at once, 0 a buffer full.

        Raises the stream's error once its events are read, and StreamTakenOver when another reader
        took its place.
        """
        # A stream that always has more wakes its reader before a cancellation can reach it.
        await anyio.lowlevel.checkpoint_if_cancelled()
        events = await self.stream.read_by(self, most)
        assert events is not None, "without a limit a read waits"
        return events

    async def read_within(self, seconds: float) -> list[Event] | None:
        """Do as `read`, and return None if nothing comes for so long.

        A cancellation may never reach who does nothing else: he looks for it by himself.
        """
        return await self.stream.read_by(self, 0, seconds)

    def take(self, most: int = 0) -> list[Event] | None:
        """Do as `read`, but at once: None when nothing is ready."""
        return self.stream.take_by(self, most)

    def listen(self, listener: Listener | None) -> None:
        """Have `listener` told what comes, until the reader leaves."""
        self.stream.listen_by(self, listener)

    def confirm(self) -> None:
        """Tell that the client's connection has taken all that was read: it counts as used, also if
        the stream is cut."""
        self.stream.confirm_by(self)

    def leave(self) -> None:
        """Read no more. What that means to the stream is for its service to say."""
        self.stream.leave_by(self)
