"""A server whose every request for tokens goes the express way, the first one of a client, too: so
the tests of the long way hold for both.

Before a head is answered that the express way does not know, the real application is asked with it,
up to where it would learn it. Whoever does not pass there goes the long way, as always.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httptools
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Scope

from gateway.core.errors import GatewayError
from gateway.http.connections import ConnectionGuard
from gateway.http.express.heads import HEAD, cut_head
from gateway.http.express.way import ExpressWay
from gateway.http.orders import ReadOrder
from gateway.http.protocol import guarded_protocol

PATHS = ("/api/v1/stream", "/api/v1/generate", "/v1/chat/completions", "/v1/completions")
_PRIMING = "test.priming"


class _Learnt(GatewayError):
    code = "learnt"


def learning(express: ExpressWay) -> Callable[[Request, ReadOrder], None]:
    """Return a `learn` that goes no further where a request was only to be learnt of."""

    def learn(request: Request, read: ReadOrder) -> None:
        express.learn(request, read)
        if request.scope.get(_PRIMING):
            raise _Learnt("It would be answered now.")

    return learn


def primed_protocol(guard: ConnectionGuard, express: ExpressWay) -> type[asyncio.Protocol]:
    """Return the gateway's protocol, with every head that passes learnt before it is answered."""
    base: Any = guarded_protocol(guard, express)

    class Primed(base):  # type: ignore[misc]
        priming: asyncio.Task[None] | None = None
        waiting = b""

        def data_received(self, data: bytes) -> None:
            if self.priming is not None:
                self.waiting += data
                return
            scope = self._strange(data) if self._peer is not None and self._is_idle else None
            if scope is None:
                super().data_received(data)
                return
            self.waiting = data
            body = data[scope[HEAD].body_at : scope[HEAD].total]
            self.priming = asyncio.ensure_future(_prime(self.app, scope, body))
            self.priming.add_done_callback(self._go_on)

        def _strange(self, data: bytes) -> Scope | None:
            """Return the scope of a whole request for tokens that is not known by its head."""
            held = self._held + data
            head = cut_head(held)
            if head is None or len(held) < head.total or express.find(self._peer, held):
                return None
            scope = _read_scope(held[: head.body_at], self.client, self.server)
            return scope | {HEAD: head} if scope["path"] in PATHS else None

        def _go_on(self, task: asyncio.Task[None]) -> None:
            task.result()
            self.priming, data, self.waiting = None, self.waiting, b""
            if self._peer is not None:
                super().data_received(data)

    return Primed


async def _prime(app: ASGIApp, scope: Scope, body: bytes) -> None:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        pass

    await app(scope, receive, send)


def _read_scope(head: bytes, client: Any, server: Any) -> Scope:
    headers: list[tuple[bytes, bytes]] = []
    found: dict[str, str] = {}

    class Reader:
        def on_url(self, url: bytes) -> None:
            found["url"] = url.decode()

        def on_header(self, name: bytes, value: bytes) -> None:
            headers.append((name.lower(), value))

    parser = httptools.HttpRequestParser(Reader())
    with contextlib.suppress(httptools.HttpParserError):
        parser.feed_data(head)
    url = urlsplit(found.get("url", ""))
    return {
        "type": "http",
        "http_version": parser.get_http_version(),
        "method": parser.get_method().decode(),
        "path": url.path,
        "raw_path": url.path.encode(),
        "query_string": url.query.encode(),
        "root_path": "",
        "scheme": "http",
        "headers": headers,
        "client": client,
        "server": server,
        _PRIMING: True,
    }
