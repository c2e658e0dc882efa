"""The uvicorn server, which drains the gateway's streams before it stops."""

import asyncio
import fcntl
import logging
import signal
import socket
import sys
import termios
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Any

import anyio
import uvicorn

from gateway.core.errors import Misconfigured

logger = logging.getLogger(__name__)


BACKLOG = 2048
ACCEPTS_A_TURN = 16
"""uvloop accepts one connection in a turn of the event loop for each handle that listens: with one
alone each client that comes to a busy gateway would wait a turn, which may take 50 ms, for each one
before it. Source: libuv 1.52, `uv__server_io`."""
FROZEN_S = 0.15
"""How long a client may take nothing of what it is sent at the exit."""
VANISHED_S = 60.0
"""How long a client may answer nothing, not even its system, until it counts as gone."""


def listen(host: str, port: int, *, vanished_s: float = VANISHED_S) -> socket.socket:
    """Return a listening socket; raises Misconfigured when the address cannot be had.

    A connection to it ends once nothing came from the client's machine for `vanished_s`.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        # With the protocol named, asyncio sets TCP_NODELAY; without, every small write waits.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _notice_who_vanished(listener, vanished_s)
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
        return listener
    except OSError as error:
        raise Misconfigured(
            [f"GATEWAY_HOST, GATEWAY_PORT: {host}:{port} cannot be listened on: {error.strerror}"]
        ) from None


def _notice_who_vanished(listener: socket.socket, vanished_s: float) -> None:
    """Have the system ask who is silent, and give up who does not confirm what he is sent: one that
    lost its power or its network says no word. What is accepted has the options of its listener;
    those that a system does not know it does without. Source: Linux, tcp(7)."""
    quarter_s = max(1, round(vanished_s / 4))
    options = {
        "TCP_KEEPIDLE": quarter_s,
        "TCP_KEEPALIVE": quarter_s,  # what macOS calls it
        "TCP_KEEPINTVL": quarter_s,
        "TCP_KEEPCNT": 3,
        "TCP_USER_TIMEOUT": round(vanished_s * 1000),
    }
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in options.items():
        if hasattr(socket, name):
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class DrainingServer(uvicorn.Server):
    """Serves until SIGINT or SIGTERM, then runs `drain(grace_s)`, then stops.

    While it drains the listener stays open: new requests are told 503 and Retry-After, which
    serves a load balancer better than a refused connection. A second signal drains without grace,
    a third stops at once.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        drain: Callable[[float], Awaitable[None]],
        grace_s: float,
        started: Callable[[str], None],
    ) -> None:
        """`started` is told the URL once the server listens."""
        super().__init__(config)
        self._drain = drain
        self._graces_s = [grace_s, 0.0]
        self._tell_started = started
        self._loop: asyncio.AbstractEventLoop | None = None
        self._drains: set[asyncio.Task[None]] = set()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        if sockets:
            sockets = [*sockets, *_more_handles(sockets[0])]
        await super().serve(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._cut_frozen)
            await super().shutdown(sockets)
            tasks.cancel_scope.cancel()

    async def _cut_frozen(self) -> None:
        """Cut the connections whose clients take nothing: nobody waits for those. What is left for
        them is all said by now, so what they have to take only becomes less."""
        before: dict[Any, int] = {}
        while True:
            left = {each: _unsent_bytes(each) for each in list(self.server_state.connections)}
            for connection, size in left.items():
                if size and size >= before.get(connection, size + 1):
                    connection.transport.abort()
            before = left
            await anyio.sleep(FROZEN_S)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._tell_started(_url_of(self.servers[0].sockets[0]))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._loop is None or not self._graces_s:
            self.should_exit = self.force_exit = True
            return
        name = signal.Signals(sig).name
        self._loop.call_soon_threadsafe(self._begin_drain, name, self._graces_s.pop(0))

    def _begin_drain(self, cause: str, grace_s: float) -> None:
        logger.info("%s: draining for at most %g s", cause, grace_s)
        task = asyncio.ensure_future(self._drain_and_exit(grace_s))
        self._drains.add(task)
        task.add_done_callback(self._drains.discard)

    async def _drain_and_exit(self, grace_s: float) -> None:
        try:
            await self._drain(grace_s)
        finally:
            self.should_exit = True


def _more_handles(listener: socket.socket) -> list[socket.socket]:
    """Return further handles of a listening socket, which listens until the last is closed."""
    return [listener.dup() for _ in range(ACCEPTS_A_TURN - 1)]


def _unsent_bytes(connection: Any) -> int:
    """Return how much the client did not take yet: what waits here, and what the kernel holds,
    which becomes less with everything that a slow client takes."""
    transport = connection.transport
    if transport is None:
        return 0
    waiting = int(transport.get_write_buffer_size())
    return waiting and waiting + _held_by_kernel(transport.get_extra_info("socket"))


def _held_by_kernel(connected: socket.socket) -> int:
    size = bytearray(4)
    try:
        fcntl.ioctl(connected.fileno(), termios.TIOCOUTQ, size)
    except OSError:
        return 0
    return int.from_bytes(size, sys.byteorder)


def _url_of(listener: socket.socket) -> str:
    """Return a URL that reaches the listener from this machine."""
    host, port = listener.getsockname()[:2]
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"
