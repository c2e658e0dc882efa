"""uvicorn's protocol with our guard at its door, telling what it knows of its connection, and lean:
many thousands of them wait at once.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.http.connections import HEAD_BYTES, ConnectionGuard, refusal
from gateway.http.disconnect import BODY, CONNECTION, Connection


def guarded_protocol(guard: ConnectionGuard) -> type[HttpToolsProtocol]:
    """Return the protocol of one server: for `uvicorn.Config(http=...)`."""
    return type("Guarded", (_Guarded,), {"__slots__": (), "guard": guard})


class _Guarded(HttpToolsProtocol):
    guard: ConnectionGuard

    # With these in it the dictionary of an instance would be ten times as large: it could no
    # longer share its keys with those of the others.
    __slots__ = ("_connection", "_deadline", "_head_bytes", "_in_head", "_peer")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pipeline = _Pipeline()  # type: ignore[assignment]
        self._peer: str | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._in_head = True
        self._connection: Connection | None = None

    def connection_made(self, transport: Any) -> None:
        peername = transport.get_extra_info("peername")
        peer = str(peername[0]) if peername else ""
        if not self.guard.enter(peer):
            transport.write(refusal())
            transport.close()
            return
        self._peer = peer
        super().connection_made(transport)
        self.flow = _Flow(transport)
        self._connection = Connection(self.flow.resume_reading, self.guard.turns)
        self._set_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._connection is not None:
            self._connection.lose()
        if self._peer is not None:
            self._leave()
            super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._connection is not None:
            self._connection.set_full(True)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._connection is not None:
            self._connection.set_full(False)

    def data_received(self, data: bytes) -> None:
        if self._peer is None:
            return
        if self._in_head:
            if self._head_bytes > HEAD_BYTES:
                self.transport.abort()
                return
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._deadline is None:
            self._set_deadline()  # only now: nearly every head comes whole

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._forget_head()
        self._in_head, self._head_bytes = True, 0

    def on_headers_complete(self) -> None:
        self._forget_head()
        self.scope[CONNECTION] = self._connection  # type: ignore[literal-required]
        super().on_headers_complete()
        if self._is_newest_begun():
            self.cycle.message_event = _Event()  # type: ignore[assignment]

    def on_message_complete(self) -> None:
        super().on_message_complete()
        if self._is_newest_begun():
            self.scope[BODY] = self.cycle.body  # type: ignore[literal-required]

    def handle_websocket_upgrade(self) -> None:
        # From here on it is no connection of this protocol; sockets have limits of their own.
        self._leave()
        super().handle_websocket_upgrade()

    def _is_newest_begun(self) -> bool:
        """Tell whether the request that is being read is one that is answered here."""
        return self.cycle is not None and self.cycle.scope is self.scope

    def _set_deadline(self) -> None:
        self._deadline = self.loop.call_later(self.guard.limits.head_s, self.transport.abort)

    def _forget_head(self) -> None:
        self._in_head = False
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None  # a timer is a kilobyte

    def _leave(self) -> None:
        self._forget_head()
        if self._peer is not None:
            self.guard.leave(self._peer)
            self._peer = None


class _Event:
    """What uvicorn uses of an asyncio.Event, whose empty deque takes most of a kilobyte."""

    __slots__ = ("_is_set", "_waiters")

    def __init__(self, *, is_set: bool = False) -> None:
        self._is_set = is_set
        self._waiters: tuple[asyncio.Future[None], ...] = ()

    def set(self) -> None:
        self._is_set = True
        waiters, self._waiters = self._waiters, ()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def clear(self) -> None:
        self._is_set = False

    async def wait(self) -> bool:
        if not self._is_set:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters += (waiter,)
            await waiter
        return True


class _Flow(FlowControl):
    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self._is_writable_event = _Event(is_set=True)  # type: ignore[assignment]


class _Pipeline(list[Any]):
    """What uvicorn uses of a deque, nearly always empty."""

    __slots__ = ()

    def appendleft(self, item: Any) -> None:
        self.insert(0, item)
