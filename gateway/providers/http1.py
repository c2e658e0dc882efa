"""A lean HTTP/1.1 client for one server: every token of an HTTP provider passes it.

Speaks to asyncio's transports themselves: the bytes of a read become pieces of a body at once, and
whoever waits is woken once for all of them. What is in the bytes is for `http1_wire`. Sends no
cookies, follows no redirect, inflates nothing, and reads no proxy from the environment.
"""

import asyncio
import ssl
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from math import inf
from typing import cast
from urllib.parse import urlsplit

import anyio

from gateway.core.telling import Wait
from gateway.providers.http1_wire import (
    ConnectionLost,
    ConnectTimedOut,
    MalformedReply,
    ReplyHead,
    ReplyParser,
    ReplyTimedOut,
    StillBusy,
    TransportError,
    Unreachable,
)
from gateway.telemetry.propagation import outgoing

Take = Callable[[bytes], Wait | None]

MAX_HELD_BYTES = 64 * 1024
"""With more that nobody has read, a connection is read no further (by one read at most)."""
KEEP_IDLE_S = 15.0
REPEAT_WITHIN_S = 1.0
"""A server that closes a used connection this soon after it was asked, and says nothing, most
likely closed it before. One that takes longer saw the request, and may have died of it."""
PART_S = 60.0
"""How long a server that was told to give a request up may take to close the connection; then it
counts no longer as being at it."""


class Http1Client:
    """Connections to the server at `base_url`, as many as there are requests, kept for the next.

    Build it on the event loop that will use it.
    """

    def __init__(
        self,
        base_url: str,
        headers: Mapping[str, str],
        *,
        connect_s: float,
        max_asked: int = sys.maxsize,
    ) -> None:
        """`headers` go with every request; a connection must be made within `connect_s`. While the
        server is at `max_asked` requests, nothing is posted to it."""
        url = urlsplit(base_url)
        self._host, self._port = url.hostname or "", url.port or _DEFAULT_PORTS[url.scheme]
        self._tls = _open_tls() if url.scheme == "https" else None
        self.is_secure = self._tls is not None
        self._base_path = url.path.rstrip("/").encode()
        fields = {"Host": _host_field(self._host, url.scheme, self._port), **headers}
        self.fields = "".join(f"{name}: {value}\r\n" for name, value in fields.items()).encode()
        self._connect_s = connect_s
        self._max_asked = max_asked
        self._connecting = 0
        self._open: set[_Connection] = set()
        self._idle: list[_Connection] = []
        self._lost = anyio.Event()

    @property
    def asked(self) -> int:
        """How many requests the server is at: one that was given up counts until the server closes
        its connection, too."""
        return self._connecting + len(self._open) - len(self._idle)

    async def post(self, path: str, body: bytes, within_s: float) -> "Reply":
        """Send a request and return its reply once the head is there; the reply must be closed.

        From here to what `Reply.expect_within` says the server may be silent for `within_s`. The
        request is one that does no harm when it is done twice: should the server have closed a
        connection that was kept, it is sent once more. Raises TransportError.
        """
        if self.asked >= self._max_asked:
            raise StillBusy(self._max_asked)
        message = b"POST %b%b HTTP/1.1\r\n%b%bContent-Length: %d\r\n\r\n%b" % (
            self._base_path,
            path.encode(),
            self.fields,
            outgoing.get(),
            len(body),
            body,
        )
        return await self._exchange(message, within_s)

    async def get(self, path: str, within_s: float) -> "Reply":
        """Ask for what is at `path`, as `post` does."""
        message = b"GET %b%b HTTP/1.1\r\n%b\r\n" % (self._base_path, path.encode(), self.fields)
        return await self._exchange(message, within_s)

    async def _exchange(self, message: bytes, within_s: float) -> "Reply":
        if self._idle:
            connection = self._idle.pop()
            try:
                return Reply(connection, await connection.ask(message, within_s))
            except ConnectionLost as lost:
                if lost.has_begun or connection.age_s > REPEAT_WITHIN_S:
                    raise
        connection = await self._connect()
        return Reply(connection, await connection.ask(message, within_s))

    async def aclose(self) -> None:
        """Close all connections, in use or not."""
        for connection in list(self._open):
            connection.abort()
        while self._open:
            self._lost = anyio.Event()
            await self._lost.wait()

    async def _connect(self) -> "_Connection":
        loop = asyncio.get_running_loop()
        self._connecting += 1
        try:
            with anyio.fail_after(self._connect_s):
                _, connection = await loop.create_connection(
                    lambda: _Connection(loop, self),
                    self._host,
                    self._port,
                    ssl=self._tls,
                )
        except TimeoutError as error:
            raise ConnectTimedOut from error
        except (OSError, UnicodeError) as error:
            raise Unreachable from error
        finally:
            self._connecting -= 1
        self._open.add(connection)
        return connection

    def keep(self, connection: "_Connection") -> None:
        """Take a connection back for the next request."""
        self._idle.append(connection)

    def drop(self, connection: "_Connection") -> None:
        """Ask a connection nothing any more."""
        with suppress(ValueError):
            self._idle.remove(connection)

    def forget(self, connection: "_Connection") -> None:
        """A connection is closed."""
        self.drop(connection)
        self._open.discard(connection)
        self._lost.set()


class Reply:
    """A reply whose head is there, and whose body may still be on its way."""

    __slots__ = ("_connection", "headers", "status")

    def __init__(self, connection: "_Connection", head: ReplyHead) -> None:
        self.status = head.status
        self.headers = head.headers
        self._connection = connection

    @property
    def is_whole(self) -> bool:
        """Whether all of it has come."""
        return self._connection.is_whole

    def expect_within(self, seconds: float) -> None:
        """From now on let a `read` fail after so long, whatever comes meanwhile; say it again when
        what came was enough."""
        self._connection.set_deadline(seconds)

    async def read(self) -> bytes:
        """Return all that came of the body, waiting for some; nothing is its end.

        Raises TransportError, after what came before the failure.
        """
        return await self._connection.read()

    async def pour(self, take: Take) -> None:
        """Have `take` called with what comes of the body, as it comes, until the body has ended.

        Where it returns a Wait, nothing more is read before that was awaited, and the server's time
        runs anew from there. Raises what `take` raises, and TransportError.
        """
        await self._connection.pour(take)

    async def finish(self, grace_s: float) -> None:
        """Wait a little for the end of a reply that has said what it had to, so that its connection
        serves again. Never raises: it is only a connection that may be lost."""
        self.expect_within(grace_s)
        with suppress(TransportError):
            await self.read()

    def close(self) -> None:
        """Keep the connection if the reply ended, else give the request up."""
        self._connection.release()


class _Connection(asyncio.Protocol):
    """A connection and the one exchange that is on it.

    Whoever pours a body is woken for its end alone: its bytes are taken in the transport's
    own turn.

    All deadlines are one number, looked at by a timer that is set anew only when it is too late:
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
        "_held",
        "_is_parting",
        "_is_paused",
        "_loop",
        "_parser",
        "_pieces",
        "_pool",
        "_take",
        "_transport",
        "_wait_before",
        "_waiter",
        "_within_s",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, pool: Http1Client) -> None:
        self._loop = loop
        self._pool = pool
        self._is_parting = False
        self._transport: asyncio.Transport
        self._parser: ReplyParser | None = None
        self._pieces: list[bytes] = []
        self._held = 0
        self._is_paused = False
        self._has_begun = False
        self._error: TransportError | None = None
        self._take: Take | None = None
        self._wait_before: Wait | None = None
        self._fault: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._asked_at = 0.0
        self._deadline = inf
        self._within_s = inf
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = inf

    @property
    def is_whole(self) -> bool:
        return self._parser is None or self._parser.is_complete

    @property
    def age_s(self) -> float:
        """How long ago it was asked."""
        return self._loop.time() - self._asked_at

    async def ask(self, message: bytes, within_s: float) -> ReplyHead:
        """Send a request; return the head of the reply."""
        parser = self._parser = ReplyParser()
        self._has_begun = False
        self._asked_at = self._loop.time()
        self.set_deadline(within_s)
        try:
            self._transport.write(message)
            while parser.head is None:
                await self._wait()
        except BaseException:
            self.hang_up()
            raise
        return parser.head

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

    async def pour(self, take: Take) -> None:
        parser = self._parser
        assert parser is not None, "a reply was read after it was closed"
        self._take = take
        try:
            self._pour()
            if self._fault is not None:
                raise self._fault
            while self._wait_before is not None or not parser.is_complete:
                if self._wait_before is None:
                    self._resume()  # what came before anybody took it may have been too much
                    await self._wait()
                else:
                    await self._wait_before()
                    self._wait_before = None
                    self.set_deadline(self._within_s)
                    self._resume()
                    self._pour()
                if self._fault is not None:
                    raise self._fault
        finally:
            self._take = self._wait_before = self._fault = None

    def _pour(self) -> None:
        """Give away what there is, unless who takes it wants to be waited for."""
        if (
            self._take is not None
            and self._pieces
            and self._wait_before is None
            and self._fault is None
        ):
            try:
                self._wait_before = self._take(self._empty())
            except Exception as fault:
                self._fault = fault

    def _empty(self) -> bytes:
        """Return what is held, and hold it no more."""
        pieces = self._pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._held = 0
        return data

    def _resume(self) -> None:
        """Read on, if reading was paused for all that was held."""
        if self._is_paused:
            self._is_paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()

    def set_deadline(self, seconds: float) -> None:
        self._within_s = seconds
        self._deadline = self._loop.time() + seconds
        if self._deadline < self._alarm_at:
            self._set_alarm()

    def release(self) -> None:
        """End the exchange: be free for the next one, or give the request up."""
        parser, self._parser = self._parser, None
        if parser is None:
            return
        self._pieces.clear()
        self._held = 0
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
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: TransportError) -> None:
        """Let the exchange end with `error` once what came before is read; the first one counts."""
        if self._error is None:
            self._error = error
        self._wake()
        self.abort()

    def _set_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = self._deadline
        self._alarm = self._loop.call_at(self._alarm_at, self._look)

    def _look(self) -> None:
        """Do what the deadline means, if this is it."""
        self._alarm, self._alarm_at = None, inf
        if self._loop.time() < self._deadline:
            self._set_alarm()
        elif self._parser is None or self._is_parting:
            self.abort()
        elif self._waiter is not None:
            self._error = ReplyTimedOut()
            self._wake()
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
        try:
            self._parser.feed(data, self._pieces)
        except MalformedReply as error:
            self._fail(error)
            return
        if self._take is not None:
            self._pour()
            if not (self._fault or self._wait_before or self._parser.is_complete):
                return  # nobody needs to know
        self._held += len(data)
        if self._held > MAX_HELD_BYTES and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.forget(self)
        if self._alarm is not None:
            self._alarm.cancel()
        is_whole = exc is None and self._parser is not None and self._parser.end()
        if self._error is None and not is_whole:
            self._error = ConnectionLost(self._has_begun)
        self._wake()


_DEFAULT_PORTS = {"http": 80, "https": 443}


def _host_field(host: str, scheme: str, port: int) -> str:
    try:
        name = host.encode("idna").decode()
    except UnicodeError:
        name = host.encode("ascii", "replace").decode()  # no such host can be reached anyway
    name = f"[{name}]" if ":" in name else name
    return name if port == _DEFAULT_PORTS[scheme] else f"{name}:{port}"


def _open_tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
