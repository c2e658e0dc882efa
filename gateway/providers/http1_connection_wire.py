"""A connection to an HTTP/1.1 server, and the one exchange that is on it.

Speaks to asyncio's transports themselves. Whoever waits for something is called when there is news;
a coroutine that waits is one of them, and so there is one way from bytes to whom they are for.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from math import inf
from typing import Protocol, cast

from gateway.core.telling import Wait
from gateway.core.turns import LARGE_BYTES, Turns
from gateway.providers.http1_wire import (
    ConnectionLost,
    KnownHeads,
    MalformedReply,
    ReplyHead,
    ReplyParser,
    ReplyTimedOut,
    TransportError,
)

Take = Callable[[bytes], Wait | None]

MAX_HELD_BYTES = 64 * 1024
"""With more that nobody has read, a connection is read no further (by one read at most)."""
KEEP_IDLE_S = 15.0
PART_S = 60.0
"""How long a server that was told to give a request up may take to close the connection; then it
counts no longer as being at it."""


class Pool(Protocol):
    """Whose the connections are."""

    @property
    def is_secure(self) -> bool: ...

    @property
    def heads(self) -> KnownHeads: ...

    @property
    def turns(self) -> Turns: ...

    def keep(self, connection: "Connection") -> None:
        """Take a connection back for the next request."""
        ...

    def drop(self, connection: "Connection") -> None:
        """Ask a connection nothing any more."""
        ...

    def forget(self, connection: "Connection") -> None:
        """A connection is closed."""
        ...


class Connection(asyncio.Protocol):
    """All deadlines are one number, looked at by a timer that is set anew only when it is too late:
    a read costs no timer, and neither does a request on a connection that is in use.
    """

    __slots__ = (
        "_alarm",
        "_alarm_at",
        "_asked_at",
        "_deadline",
        "_error",
        "_fault",
        "_has_begun",
        "_hear",
        "_held",
        "_is_parting",
        "_is_paused",
        "_loop",
        "_parser",
        "_pieces",
        "_pool",
        "_take",
        "_transport",
        "_unread",
        "_wait_before",
        "_within_s",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, pool: Pool) -> None:
        self._loop = loop
        self._pool = pool
        self._is_parting = False
        self._transport: asyncio.Transport
        self._parser: ReplyParser | None = None
        self._pieces: list[bytes] = []
        self._held = 0
        self._unread = b""
        self._is_paused = False
        self._has_begun = False
        self._error: TransportError | None = None
        self._take: Take | None = None
        self._wait_before: Wait | None = None
        self._fault: Exception | None = None
        self._hear: Callable[[], None] | None = None
        self._asked_at = 0.0
        self._deadline = inf
        self._within_s = inf
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = inf

    @property
    def head(self) -> ReplyHead | None:
        """The head of the reply, once it is there."""
        return None if self._parser is None else self._parser.head

    @property
    def is_whole(self) -> bool:
        return self._parser is None or self._parser.is_complete

    @property
    def is_stuck(self) -> bool:
        """Whether `pour` has to wait for something else than the server, or would raise."""
        return (
            self._wait_before is not None
            or self._fault is not None
            or (self._error is not None and not self.is_whole)
        )

    @property
    def age_s(self) -> float:
        """How long ago it was asked."""
        return self._loop.time() - self._asked_at

    def send(self, message: bytes, within_s: float) -> None:
        """Send a request; its reply is to be released."""
        self._parser = ReplyParser(self._pool.heads)
        self._has_begun = False
        self._asked_at = self._loop.time()
        self.set_deadline(within_s)
        self._transport.write(message)

    def listen(self, hear: Callable[[], None] | None) -> None:
        """Have `hear` called when there is news: the head, the end, or that the reply is stuck. Who
        listens waits for the server: its time runs. Ends with the reply's release."""
        self._hear = hear

    async def wait_head(self) -> None:
        """Wait until the head is there."""
        while self.head is None:
            await self._wait()

    async def read(self) -> bytes:
        parser = self._parser
        assert parser is not None, "a reply was read after it was closed"
        while not self._pieces:
            if parser.is_complete:
                return b""
            await self._wait()
        data = self._empty()
        self._resume()
        return data

    def pour_into(self, take: Take) -> None:
        """Give what comes of the body to `take`, as it comes, from now on."""
        self._take = take
        self._pour()
        if self._wait_before is None:
            self._resume()  # what came before anybody took it may have been too much

    async def pour(self, take: Take) -> None:
        """Do as `pour_into`, or go on with it, to the end of the body."""
        parser = self._parser
        assert parser is not None, "a reply was read after it was closed"
        self.pour_into(take)
        while True:
            if self._fault is not None:
                raise self._fault
            if self._wait_before is not None:
                await self._wait_before()
                self._wait_before = None
                self.set_deadline(self._within_s)
                self._resume()
                self._pour()
            elif parser.is_complete:
                return
            else:
                await self._wait()

    def _pour(self) -> None:
        """Give away what there is, unless who takes it wants to be waited for."""
        take, pieces = self._take, self._pieces
        if take is None or not pieces or self._wait_before or self._fault:
            return
        wait, fault = None, None
        try:
            wait = take(pieces.pop() if len(pieces) == 1 and not self._held else self._empty())
        except Exception as error:
            fault = error
        if (wait or fault) and self._take is take:  # else who took it has let go of the reply
            self._wait_before, self._fault = wait, fault

    def _empty(self) -> bytes:
        """Return what is held, and hold it no more."""
        pieces = self._pieces
        self._held = 0
        if len(pieces) == 1:
            return pieces.pop()
        data = b"".join(pieces)
        pieces.clear()
        return data

    def _resume(self) -> None:
        """Read on, if reading was paused for all that was held."""
        if self._is_paused and not self._unread:
            self._is_paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()

    def set_deadline(self, seconds: float) -> None:
        self._within_s = seconds
        self._deadline = deadline = self._loop.time() + seconds
        if deadline < self._alarm_at:
            self._set_alarm()

    def release(self) -> None:
        """End the exchange: be free for the next one, or give the request up."""
        parser, self._parser = self._parser, None
        if parser is None:
            return
        self._take = self._wait_before = self._fault = self._hear = None
        self._pieces.clear()
        self._held = 0
        self._unread = b""
        transport = self._transport
        serves = not (
            self._is_paused or transport.is_closing() or transport.get_write_buffer_size()
        )
        if not parser.is_complete:
            self.hang_up()
        elif parser.keeps_alive and serves:
            self.set_deadline(KEEP_IDLE_S)
            self._pool.keep(self)
        else:
            self.abort()

    def hang_up(self) -> None:
        """Tell the server that nobody waits for the reply, and stay until it closes, too: so
        long it may be at work. One that goes on to speak is told once more, by a reset."""
        transport = self._transport
        if self._is_parting:
            return
        # TLS has no end of one side alone, and behind what the server does not take it is not seen.
        if self._pool.is_secure or transport.is_closing() or transport.get_write_buffer_size():
            self.abort()
            return
        self._is_parting = True
        transport.write_eof()
        if self._is_paused:
            transport.resume_reading()
        self.set_deadline(PART_S)

    def abort(self) -> None:
        """Close the socket at once: whatever is on its way is lost."""
        self._pool.drop(self)
        self._transport.abort()

    async def _wait(self) -> None:
        """Wait until more is known than before; raise why there will be no more."""
        if self._error is not None:
            raise self._error
        if self._alarm is None:
            self._set_alarm()
        waiter = self._loop.create_future()
        self._hear = partial(_wake, waiter)
        try:
            await waiter
        finally:
            self._hear = None

    def _tell(self) -> None:
        """Tell that there is news."""
        if self._hear is not None:
            self._hear()

    def _fail(self, error: TransportError) -> None:
        """Let the exchange end with `error` once what came before is read; the first one counts."""
        if self._error is None:
            self._error = error
        self._tell()
        self.abort()

    def _set_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = self._deadline
        self._alarm = self._loop.call_at(self._alarm_at, self._look)

    def _look(self) -> None:
        """Do what the deadline means, if this is it."""
        self._alarm, self._alarm_at = None, inf
        self._read_now()  # what has come came in time
        if self._loop.time() < self._deadline:
            self._set_alarm()
        elif self._parser is None or self._is_parting:
            self.abort()
        elif self._hear is not None:
            self._error = ReplyTimedOut()
            self._tell()
            self.hang_up()
        # Else the server is waited for by nobody; the next who waits sets the alarm.

    # --- what the transport tells -------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(
            asyncio.Transport, transport
        )  # uvloop's are of no class of asyncio's

    def data_received(self, data: bytes) -> None:
        if self._parser is None or self._is_parting:
            self.abort()  # a server that speaks without being asked is none to be asked again
            return
        self._has_begun = True
        if len(data) > LARGE_BYTES or self._unread:
            self._unread += data
            self._read_in_turn()
        else:
            self._read(data)

    def _read_in_turn(self) -> None:
        """Read what came, in a later turn if this one had its share; until then nothing more."""
        if self._unread and not self._pool.turns.admit(len(self._unread), self._read_in_turn):
            self._pause()
        else:
            self._read_now()

    def _read_now(self) -> None:
        """Read what waits for its turn."""
        data, self._unread = self._unread, b""
        if data:
            self._resume()
            self._read(data)

    def _read(self, data: bytes) -> None:
        parser = self._parser
        assert parser is not None, "who is not asked is not heard"
        try:
            parser.feed(data, self._pieces)
        except MalformedReply as error:
            self._pour()
            self._fail(error)
            return
        if self._take is not None:
            self._pour()
            if not (self._fault or self._wait_before or parser.is_complete):
                return  # nobody needs to know
            if self._parser is not parser:
                return  # who took it has let go of the reply
        if self._pieces:
            self._hold(len(data))
        self._tell()

    def _hold(self, size: int) -> None:
        """Take note that so much more waits for somebody to read it."""
        self._held += size
        if self._held > MAX_HELD_BYTES:
            self._pause()

    def _pause(self) -> None:
        if not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._read_now()
        self._pool.forget(self)
        if self._alarm is not None:
            self._alarm.cancel()
        is_whole = exc is None and self._parser is not None and self._parser.end()
        if self._error is None and not is_whole:
            self._error = ConnectionLost(self._has_begun)
        self._tell()


def _wake(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)
