"""A lean HTTP/1.1 client for one server: every token of an HTTP provider passes it.

Knows the connections; how one exchange goes is for `http1_connection_wire`, and what is in the
bytes for `http1_wire`. Sends no cookies, follows no redirect, inflates nothing, and reads no proxy
from the environment.
"""

import asyncio
import ssl
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from urllib.parse import urlsplit

import anyio

from gateway import telemetry
from gateway.core.turns import Turns
from gateway.providers.http1_connection_wire import Connection, Take
from gateway.providers.http1_wire import (
    ConnectionLost,
    ConnectTimedOut,
    KnownHeads,
    ReplyHead,
    StillBusy,
    TransportError,
    Unreachable,
)
from gateway.telemetry.propagation import outgoing

REPEAT_WITHIN_S = 1.0
"""A server that closes a used connection this soon after it was asked, and says nothing, most
likely closed it before. One that takes longer saw the request, and may have died of it."""


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
        self.heads = KnownHeads()
        self.turns = Turns()
        self._base_path = url.path.rstrip("/").encode()
        fields = {"Host": _host_field(self._host, url.scheme, self._port), **headers}
        self.fields = "".join(f"{name}: {value}\r\n" for name, value in fields.items()).encode()
        self._connect_s = connect_s
        self._max_asked = max_asked
        self._connecting = 0
        self._open: set[Connection] = set()
        self._idle: list[Connection] = []
        self._lost = anyio.Event()

    @property
    def asked(self) -> int:
        """How many requests the server is at: one that was given up counts until the server closes
        its connection, too."""
        return self._connecting + len(self._open) - len(self._idle)

    @property
    def is_ready(self) -> bool:
        """Whether a request can be sent at once."""
        return bool(self._idle) and self.asked < self._max_asked

    async def post(self, path: str, body: bytes, within_s: float) -> "Reply":
        """Send a request and return its reply once the head is there; the reply must be closed.

        From here to what `Reply.expect_within` says the server may be silent for `within_s`. The
        request is one that does no harm when it is done twice: should the server have closed a
        connection that was kept, it is sent once more. Raises TransportError.
        """
        return await _arrived(await self.ask(path, body, within_s))

    async def ask(self, path: str, body: bytes, within_s: float) -> "Reply":
        """Do as `post`, and return before the head is there: `Reply.arrive` is next."""
        if self.asked >= self._max_asked:
            raise StillBusy(self._max_asked)
        return await self._send(self._post(path, body), within_s)

    def ask_now(self, path: str, body: bytes, within_s: float) -> "Reply":
        """Do as `ask` where the client `is_ready`."""
        return self._send_kept(self._post(path, body), within_s)

    async def get(self, path: str, within_s: float) -> "Reply":
        """Ask for what is at `path`, as `post` does."""
        message = b"GET %b%b HTTP/1.1\r\n%b\r\n" % (self._base_path, path.encode(), self.fields)
        return await _arrived(await self._send(message, within_s))

    def _post(self, path: str, body: bytes) -> bytes:
        return b"POST %b%b HTTP/1.1\r\n%b%bContent-Length: %d\r\n\r\n%b" % (
            self._base_path,
            path.encode(),
            self.fields,
            outgoing.get(),
            len(body),
            body,
        )

    async def _send(self, message: bytes, within_s: float) -> "Reply":
        if self._idle:
            return self._send_kept(message, within_s)
        connection = await self.connect()
        connection.send(message, within_s)
        return Reply(self, connection, None)

    def _send_kept(self, message: bytes, within_s: float) -> "Reply":
        connection = self._idle.pop()
        connection.send(message, within_s)
        return Reply(self, connection, (message, within_s))

    async def aclose(self) -> None:
        """Close all connections, in use or not."""
        for connection in list(self._open):
            connection.abort()
        while self._open:
            self._lost = anyio.Event()
            await self._lost.wait()

    async def connect(self) -> Connection:
        """Return a new connection; raises TransportError."""
        loop = asyncio.get_running_loop()
        self._connecting += 1
        try:
            with anyio.fail_after(self._connect_s):
                connection = await self._open_one(loop)
        except TimeoutError as error:
            raise ConnectTimedOut from error
        except (OSError, UnicodeError) as error:
            raise Unreachable from error
        finally:
            self._connecting -= 1
        self._open.add(connection)
        return connection

    async def _open_one(self, loop: asyncio.AbstractEventLoop) -> Connection:
        # It serves other requests after this one: what is logged then is not this one's.
        with telemetry.of_no_request():
            _, connection = await loop.create_connection(
                lambda: Connection(loop, self), self._host, self._port, ssl=self._tls
            )
        return connection

    def keep(self, connection: Connection) -> None:
        """Take a connection back for the next request."""
        self._idle.append(connection)

    def drop(self, connection: Connection) -> None:
        """Ask a connection nothing any more."""
        with suppress(ValueError):
            self._idle.remove(connection)

    def forget(self, connection: Connection) -> None:
        """A connection is closed."""
        self.drop(connection)
        self._open.discard(connection)
        self._lost.set()


class Reply:
    """A reply that was asked for, and that must be closed; its body may still be on its way, and
    its head, too, until `arrive` has returned."""

    __slots__ = ("_again", "_client", "_connection", "_head")

    def __init__(
        self, client: Http1Client, connection: Connection, again: tuple[bytes, float] | None
    ) -> None:
        """`again` is what to send once more, and within what time, should the server have closed
        the `connection` before it was asked."""
        self._client = client
        self._connection = connection
        self._again = again
        self._head: ReplyHead | None = None

    @property
    def head(self) -> ReplyHead | None:
        """The head, once it is there."""
        if self._head is None:
            self._head = self._connection.head
        return self._head

    @property
    def status(self) -> int:
        return self._arrived.status

    @property
    def headers(self) -> dict[str, str]:
        return self._arrived.headers

    @property
    def is_encoded(self) -> bool:
        """Whether its body is compressed, or encoded in another way that nobody asked for."""
        return self._arrived.is_encoded

    @property
    def _arrived(self) -> ReplyHead:
        head = self.head
        assert head is not None, "a reply was looked at before it was there"
        return head

    @property
    def is_whole(self) -> bool:
        """Whether all of it has come."""
        return self._connection.is_whole

    @property
    def is_stuck(self) -> bool:
        """Whether `arrive` or `pour` has to wait for something else than the server, or would
        raise."""
        return self._connection.is_stuck

    async def arrive(self) -> None:
        """Wait for the head; ask once more if the server had closed its connection before. Raises
        TransportError."""
        again, self._again = self._again, None
        try:
            await self._connection.wait_head()
        except ConnectionLost as lost:
            if again is None or lost.has_begun or self._connection.age_s > REPEAT_WITHIN_S:
                raise
            self._connection = await self._client.connect()
            self._connection.send(*again)
            await self._connection.wait_head()
        self._head = self._connection.head

    def listen(self, hear: Callable[[], None] | None) -> None:
        """Have `hear` called when there is news: the head, the end, or that the reply is stuck.
        Whoever waits, or closes the reply, is listened for no longer."""
        self._connection.listen(hear)

    def expect_within(self, seconds: float) -> None:
        """From now on let whoever waits fail after so long, whatever comes meanwhile; say it again
        when what came was enough."""
        self._connection.set_deadline(seconds)

    async def read(self) -> bytes:
        """Return all that came of the body, waiting for some; nothing is its end.

        Raises TransportError, after what came before the failure.
        """
        return await self._connection.read()

    async def read_some(self, within_s: float, most: int) -> bytes:
        """Return what comes of the body within that time, and no more than `most` bytes. A failure
        is its end, too: for a body that only says more of what the status tells."""
        some = bytearray()
        self.expect_within(within_s)
        with suppress(TransportError):
            while len(some) < most and (chunk := await self.read()):
                some += chunk
        return bytes(some[:most])

    def pour_into(self, take: Take) -> None:
        """Have `take` called with what comes of the body, as it comes. Where it returns a Wait or
        raises, the reply is stuck, and `pour` is to go on with it."""
        self._again = None
        self._connection.pour_into(take)

    async def pour(self, take: Take) -> None:
        """Have `take` called with what comes of the body, as it comes, until the body has ended.

        Where it returns a Wait, nothing more is read before that was awaited, and the server's time
        runs anew from there. Raises what `take` raises, and TransportError.
        """
        await self._connection.pour(take)

    def close(self) -> None:
        """Keep the connection if the reply ended, else give the request up."""
        self._connection.release()


async def _arrived(reply: Reply) -> Reply:
    try:
        await reply.arrive()
    except BaseException:
        reply.close()
        raise
    return reply


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
