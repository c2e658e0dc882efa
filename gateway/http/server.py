"""The uvicorn server, which drains the gateway's streams before it stops."""

import asyncio
import logging
import signal
import socket
from collections.abc import Awaitable, Callable
from types import FrameType

import uvicorn

from gateway.core.errors import Misconfigured

logger = logging.getLogger(__name__)


BACKLOG = 2048


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; raises Misconfigured when the address cannot be had."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        # With the protocol named, asyncio sets TCP_NODELAY; without, every small write waits.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
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


class DrainingServer(uvicorn.Server):
    """Serves until SIGINT or SIGTERM, then runs `drain`, then stops. A second signal skips it.

    While it drains the listener stays open: new requests are told 503 and Retry-After, which
    serves a load balancer better than a refused connection.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        drain: Callable[[], Awaitable[None]],
        started: Callable[[str], None],
    ) -> None:
        """`started` is told the URL once the server listens."""
        super().__init__(config)
        self._drain = drain
        self._tell_started = started
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            address = self.servers[0].sockets[0].getsockname()
            host = f"[{address[0]}]" if ":" in address[0] else address[0]
            self._tell_started(f"http://{host}:{address[1]}")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._loop is None or self._draining is not None:
            self.should_exit = True
            self.force_exit = self._draining is not None
            return
        self._loop.call_soon_threadsafe(self._begin_drain, signal.Signals(sig).name)

    def _begin_drain(self, cause: str) -> None:
        if self._draining is None:
            logger.info("%s: draining", cause)
            self._draining = asyncio.ensure_future(self._drain_and_exit())

    async def _drain_and_exit(self) -> None:
        try:
            await self._drain()
        finally:
            self.should_exit = True
