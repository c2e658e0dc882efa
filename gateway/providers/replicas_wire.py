"""Several servers that serve alike: each request goes to the one with the fewest under way."""

from collections.abc import Iterator, Mapping, Sequence

from gateway.core.names import ModelRef
from gateway.providers.http1 import Http1Client, Reply
from gateway.providers.http1_wire import (
    ConnectTimedOut,
    StillBusy,
    TransportError,
    Unreachable,
)


class Replica:
    """One of the servers. `refs` are the models that it listed last, None before it did."""

    def __init__(self, url: str, http: Http1Client) -> None:
        self.url = url
        self.http = http
        self.refs: frozenset[ModelRef] | None = None
        self.is_away = False
        self.outstanding = 0
        self.last_asked = 0


class HeldReply:
    """A reply, and the place that it takes at its server until it is closed."""

    def __init__(self, replica: Replica, reply: Reply) -> None:
        self.reply = reply
        self._replica = replica

    async def arrive(self) -> None:
        """Wait for the head of a reply that was begun. Raises TransportError."""
        try:
            await self.reply.arrive()
        except (Unreachable, ConnectTimedOut):
            self._replica.is_away = True
            raise

    def close(self) -> None:
        """Close the connection at once, unless the reply has ended."""
        self.reply.close()
        self._replica.outstanding -= 1


class Replicas:
    """Servers by their URLs; which of them is away is seen by asking.

    One that refuses a connection is asked after all others until it answers a listing again, and
    the request that met it goes on to the next: nothing of it was sent.
    """

    def __init__(
        self, urls: Sequence[str], headers: Mapping[str, str], *, connect_s: float, max_asked: int
    ) -> None:
        """`max_asked` requests is each of them at, at the most."""
        self._all = [
            Replica(url, Http1Client(url, headers, connect_s=connect_s, max_asked=max_asked))
            for url in urls
        ]
        self._asked = 0

    def __iter__(self) -> Iterator[Replica]:
        return iter(self._all)

    async def post(self, path: str, body: bytes, ref: ModelRef, within_s: float) -> HeldReply:
        """Send a request and return its reply once the head is there; it must be closed.

        Raises TransportError: that of the last server, if none accepts a connection.
        """
        refusal: TransportError | None = None
        for replica in self._in_turn(ref):
            self._count(replica)
            try:
                held = HeldReply(replica, await replica.http.post(path, body, within_s))
            except (Unreachable, ConnectTimedOut, StillBusy) as error:
                replica.outstanding -= 1
                replica.is_away |= not isinstance(error, StillBusy)
                refusal = error
            except BaseException:
                replica.outstanding -= 1
                raise
            else:
                replica.is_away = False
                return held
        assert refusal is not None, "there is a server"
        raise refusal

    def post_now(self, path: str, body: bytes, ref: ModelRef, within_s: float) -> HeldReply | None:
        """Do as `post` and return before the head is there; None, and nothing was sent, where the
        server whose turn it is cannot be asked at once."""
        replica = self._in_turn(ref)[0]
        if replica.is_away or not replica.http.is_ready:
            return None
        self._count(replica)
        return HeldReply(replica, replica.http.ask_now(path, body, within_s))

    async def get(self, replica: Replica, path: str, within_s: float) -> Reply:
        """Ask one server for what is at `path`; the reply must be closed. Raises TransportError."""
        try:
            reply = await replica.http.get(path, within_s)
        except (Unreachable, ConnectTimedOut):
            replica.is_away = True
            raise
        replica.is_away = False
        return reply

    async def aclose(self) -> None:
        """Close all connections."""
        for replica in self._all:
            await replica.http.aclose()

    def _count(self, replica: Replica) -> None:
        self._asked += 1
        replica.last_asked = self._asked
        replica.outstanding += 1

    def _in_turn(self, ref: ModelRef) -> list[Replica]:
        """Return who may be asked for a model, the best first."""
        having = [replica for replica in self._all if replica.refs and ref in replica.refs]
        return sorted(
            having or self._all, key=lambda one: (one.is_away, one.outstanding, one.last_asked)
        )
