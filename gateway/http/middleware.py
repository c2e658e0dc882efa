"""What every request passes: its id, headers, the refusal while draining, unexpected errors.

Pure ASGI: nothing here buffers a reply or stands between a stream and its disconnect.
"""

import logging
import re
import secrets
from collections.abc import Collection

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway import telemetry
from gateway.core.errors import ForeignOrigin, GatewayError, InvalidRequest, ShuttingDown
from gateway.http.decision_ids import DECISION_ID, noted_decision
from gateway.http.errors import error_response
from gateway.http.headers import find_header
from gateway.http.hosts import Hosts
from gateway.problems import describe
from gateway.services.metrics import MetricsService
from gateway.services.streams import StreamService
from gateway.telemetry.propagation import incoming

logger = logging.getLogger(__name__)

REQUEST_ID = "X-Request-Id"
REQUEST_ID_BYTES = 16
_REQUEST_ID_NAME = REQUEST_ID.lower().encode()
_DECISION_ID_NAME = DECISION_ID.lower().encode()
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
ALWAYS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
)

_STARTS = frozenset({"http.response.start", "websocket.http.response.start", "websocket.accept"})
"""The messages that carry the headers of a reply."""


class RequestIds:
    """Gives each request an id, the caller's own if it is usable, and puts it on the reply, with
    the id of the decision if there is one."""

    def __init__(self, app: ASGIApp, metrics: MetricsService, *, is_traced: bool = False) -> None:
        """`metrics` counts the statuses of replies; with `is_traced` the caller's trace goes on."""
        self._app = app
        self._metrics = metrics
        self._is_traced = is_traced

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        request_id = choose_request_id(find_header(scope, _REQUEST_ID_NAME) or "")

        async def send_with_headers(message: Message) -> None:
            if message["type"] in _STARTS:
                self.complete(message, request_id, self._metrics, scope)
            await send(message)

        if self._is_traced:
            incoming.set(_read_trace(scope))
        token = telemetry.request_id.set(request_id)
        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            telemetry.request_id.reset(token)

    @staticmethod
    def complete(message: Message, request_id: str, metrics: MetricsService, scope: Scope) -> None:
        """Give the start of a reply the headers that all have, and count it."""
        # What accepts a WebSocket has no status of its own: the protocol's is 101.
        metrics.meter.responded(message.get("status", 101))
        given = message.get("headers", ())
        names = {name for name, _ in given}
        message["headers"] = [
            *given,
            (_REQUEST_ID_NAME, request_id.encode()),
            *[header for header in ALWAYS if header[0] not in names],
        ]
        if decision_id := noted_decision(scope):
            message["headers"].append((_DECISION_ID_NAME, decision_id.encode()))


def choose_request_id(given: str) -> str:
    """Return the caller's own id if it is usable, else a new one."""
    return given if given and _REQUEST_ID.fullmatch(given) else secrets.token_hex(REQUEST_ID_BYTES)


def _read_trace(scope: Scope) -> dict[str, str] | None:
    """Return the caller's headers of W3C Trace Context; None without any."""
    parent = find_header(scope, b"traceparent")
    if parent is None:
        return None
    return {"traceparent": parent, "tracestate": find_header(scope, b"tracestate") or ""}


class RefuseForeignPages:
    """Keeps web pages of other origins from acting: a browser sends their POSTs, and opens their
    WebSockets, without asking.

    A page that the gateway served, or whose origin the operator allowed, may. Programs send no
    Origin and pass.
    """

    def __init__(self, app: ASGIApp, allowed: Collection[str]) -> None:
        self._app = app
        self._allowed = frozenset(allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self._may_pass(scope):
            await self._app(scope, receive, send)
            return
        problem = describe(ForeignOrigin("A page of another origin may not do this."))
        await error_response(scope["path"], problem)(scope, receive, send)

    def _may_pass(self, scope: Scope) -> bool:
        origin = find_header(scope, b"origin")
        # A WebSocket has no method: whoever opens one may do anything with it.
        if origin is None or scope.get("method") in ("GET", "HEAD", "OPTIONS"):
            return True
        is_own = origin.partition("://")[2] == find_header(scope, b"host")
        return is_own or bool(self._allowed & {origin, "*"})


class RefuseForeignHosts:
    """Answers only to addresses, localhost and the names that the operator allowed."""

    def __init__(self, app: ASGIApp, hosts: Hosts) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        called = [value for name, value in scope["headers"] if name == b"host"]
        host = called[0].decode("latin-1") if called else ""
        error: GatewayError
        if len(called) > 1:  # others on the way may have looked at another one
            error = InvalidRequest("A request has one Host header.")
        elif self._hosts.admit(host):
            await self._app(scope, receive, send)
            return
        else:
            error = ForeignOrigin(
                f"This gateway is not called '{host[:100]}'.",
                hint="The operator can allow the name in GATEWAY_ALLOWED_HOSTS.",
            )
        await error_response(scope["path"], describe(error))(scope, receive, send)


class RefuseWhileDraining:
    """Answers new work with 503 while the gateway shuts down; what only looks still works.

    So do POSTs to `readable`, where a POST may be a query: that face looks for itself.
    """

    def __init__(self, app: ASGIApp, streams: StreamService, readable: Collection[str]) -> None:
        self._app = app
        self._streams = streams
        self._readable = frozenset(readable)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._streams.draining and self._is_work(scope):
            problem = describe(ShuttingDown("The gateway is shutting down."))
            reply = error_response(scope["path"], problem, {"Connection": "close"})
            await reply(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _is_work(self, scope: Scope) -> bool:
        if scope["type"] == "http":
            return bool(scope["method"] == "POST" and scope["path"] not in self._readable)
        return bool(scope["type"] == "websocket")


class UnexpectedErrors:
    """The outermost edge: a defect is logged with its traceback, the caller learns only of it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except ClientDisconnect:
            pass  # nobody is there to be told
        except Exception as error:
            await answer_unexpected(error, scope, receive, send, is_started=started)


async def answer_unexpected(
    error: Exception, scope: Scope, receive: Receive, send: Send, *, is_started: bool
) -> None:
    """Log a defect with its traceback; tell the caller of it, if the reply has not begun."""
    method = scope.get("method", "WebSocket")
    logger.error("%s %r failed", method, scope["path"], exc_info=error)
    if not is_started:
        await error_response(scope["path"], describe(error))(scope, receive, send)
    # Else the reply stays incomplete, on which the server cuts the connection.
