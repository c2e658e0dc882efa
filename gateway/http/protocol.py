"""uvicorn's protocol with our guard at its door, and the express way beside it; it tells what it
knows of its connection, and is lean: many thousands of them wait at once.
"""

import asyncio
from math import inf
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.http.connections import HEAD_BYTES, ConnectionGuard, refusal
from gateway.http.disconnect import CONNECTION, Connection
from gateway.http.express.exchange import Exchange
from gateway.http.express.heads import HEAD, Head, cut_head
from gateway.http.express.replies import Headers
from gateway.http.express.way import ExpressWay

BODY_WAIT_S = 1.0
"""How long the body behind a head that passes may take; then the long way waits for it."""


def guarded_protocol(
    guard: ConnectionGuard, express: ExpressWay | None = None
) -> type[HttpToolsProtocol]:
    """Return the protocol of one server: for `uvicorn.Config(http=...)`. Who may go by `express`
    never comes to uvicorn's part of it."""
    return type("Guarded", (_Guarded,), {"__slots__": (), "guard": guard, "express": express})


class _Guarded(HttpToolsProtocol):
    """Fulfils `express.exchange.Line`."""

    guard: ConnectionGuard
    express: ExpressWay | None

    # With these in it the dictionary of an instance could not share its keys with those of the
    # others: more than a kilobyte for each connection.
    __slots__ = (
        "_alarm",
        "_connection",
        "_deadline",
        "_exchange",
        "_head",
        "_head_bytes",
        "_held",
        "_in_head",
        "_is_between",
        "_is_leaving",
        "_peer",
        "_quiet_since",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pipeline = _Pipeline()  # type: ignore[assignment]
        self._peer: str | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._in_head = True
        self._connection: Connection
        self._head: Head | None = None
        self._exchange: Exchange | None = None
        self._held = b""
        self._is_between = True
        self._is_leaving = False
        self._alarm: asyncio.TimerHandle | None = None
        self._quiet_since = inf

    # --- the connection -----------------------------------------------------------------------

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
        if self._peer is None:
            return
        self._held, self._exchange = b"", None
        self._connection.lose()
        self._leave()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._peer is not None:
            self._connection.set_full(True)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._peer is not None:
            self._connection.set_full(False)

    def shutdown(self) -> None:
        if self._exchange is None:
            super().shutdown()
        else:
            self._is_leaving = True

    def data_received(self, data: bytes) -> None:
        if self._peer is None:
            return
        if self._held:
            data = self._held + data
            self._held = b""
        if not data:
            return
        if self._exchange is not None:
            self._hold(data)
        elif not (self.express is not None and self._is_idle and self._goes_express(data)):
            self._go_the_long_way(data)

    # --- the express way ----------------------------------------------------------------------

    @property
    def connection(self) -> Connection:
        return self._connection

    @property
    def own_headers(self) -> Headers:
        return self.server_state.default_headers

    def done(self) -> None:
        """The reply of the express way is written."""
        self._exchange = None
        if self._is_leaving:
            self.transport.close()
            return
        if self._held:
            self.flow.resume_reading()
            self.loop.call_soon(self.data_received, b"")
        self._quiet_since = self.loop.time()
        self._watch_quiet()

    @property
    def _is_idle(self) -> bool:
        """Whether what comes next begins a request, and no other one is answered."""
        return self._is_between and (self.cycle is None or self.cycle.response_complete)

    def _goes_express(self, data: bytes) -> bool:
        """Have the request that `data` begins with answered, or wait for the rest of its body."""
        assert self.express is not None and self._peer is not None
        found = self.express.find(self._peer, data)
        if found is None:
            return False
        passed, head = found
        if len(data) < head.total:
            self._await_body(data)
            return True
        exchange = self.express.enter(passed, data[head.body_at : head.total], self)
        if exchange is None:
            return False
        self._forget_head()
        self._unset_keepalive_if_required()
        self._held = data[head.total :]
        self._exchange = exchange
        exchange.begin()
        return True

    def _await_body(self, data: bytes) -> None:
        if self._in_head or self._deadline is None:
            self._forget_head()
            self._deadline = self.loop.call_later(BODY_WAIT_S, self._lose_patience)
        self._unset_keepalive_if_required()
        self._held = data

    def _lose_patience(self) -> None:
        self._deadline = None
        held, self._held = self._held, b""
        self._go_the_long_way(held)

    def _hold(self, data: bytes) -> None:
        """Keep what comes before the reply to what came before it is written."""
        self._held = data
        if len(data) > HEAD_BYTES:
            self.flow.pause_reading()

    def _watch_quiet(self) -> None:
        if self._alarm is None:
            self._alarm = self.loop.call_later(self.timeout_keep_alive, self._look_for_quiet)

    def _look_for_quiet(self) -> None:
        """Close a connection that was quiet for long. One timer, set anew only when it is too
        early: a request costs none."""
        self._alarm = None
        if self._exchange is not None or self._held or not self._is_idle:
            return
        left_s = self._quiet_since + self.timeout_keep_alive - self.loop.time()
        if left_s <= 0:
            self.transport.close()
        elif left_s < inf:
            self._alarm = self.loop.call_later(left_s, self._look_for_quiet)

    # --- the long way -------------------------------------------------------------------------

    def _go_the_long_way(self, data: bytes) -> None:
        self._quiet_since = inf  # it looks after that by itself
        if self._in_head:
            if self._head_bytes > HEAD_BYTES:
                self.transport.abort()
                return
            self._head_bytes += len(data)
        if self.express is not None and self._is_idle:
            self._head = cut_head(data)
        super().data_received(data)
        self._head = None
        if self._in_head and self._deadline is None:
            self._set_deadline()  # only now: nearly every head comes whole

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._forget_head()
        self._in_head, self._head_bytes = True, 0
        self._is_between = False

    def on_headers_complete(self) -> None:
        self._forget_head()
        self.scope[CONNECTION] = self._connection  # type: ignore[literal-required]
        if self._head is not None:
            self.scope[HEAD], self._head = self._head, None  # type: ignore[literal-required]
        super().on_headers_complete()
        if self.cycle is not None and self.cycle.scope is self.scope:
            self.cycle.message_event = _Event()  # type: ignore[assignment]

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._is_between = True

    def handle_websocket_upgrade(self) -> None:
        # From here on it is no connection of this protocol; sockets have limits of their own.
        self._leave()
        super().handle_websocket_upgrade()

    def _set_deadline(self) -> None:
        self._deadline = self.loop.call_later(self.guard.limits.head_s, self.transport.abort)

    def _forget_head(self) -> None:
        self._in_head = False
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None  # a timer is a kilobyte

    def _leave(self) -> None:
        self._forget_head()
        if self._alarm is not None:
            self._alarm.cancel()
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
