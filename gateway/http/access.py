"""The door: which scope opens each route, and the one place where keys are asked for.

Decides by the routes' own matching of `scope["path"]`, before a body is read, for WebSockets too.
What is in no table is for ADMIN only.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import anyio
from starlette.datastructures import MutableHeaders, QueryParams
from starlette.routing import BaseRoute, Match, Route, WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.core.errors import Forbidden, GatewayError, KeyRevoked, Unauthenticated
from gateway.core.hosts import is_loopback
from gateway.core.keys import CALLER, Caller, KeyScope, read_credential
from gateway.core.rate import Allowance, require
from gateway.http.caller import identify_stranger
from gateway.http.errors import error_response
from gateway.http.pages import CHAT_ROUTES, opens_page
from gateway.problems import describe
from gateway.services.gatekeeper import Gatekeeper
from gateway.services.streams import StreamService

ANY_KEY = frozenset(KeyScope)
INFER = frozenset({KeyScope.INFER})
MANAGE = frozenset({KeyScope.MANAGE})
LOOK = INFER | MANAGE
ADMIN: frozenset[KeyScope] = frozenset({KeyScope.ADMIN})

OPEN_ROUTES = frozenset(
    {("GET", "/health/live"), ("GET", "/health/ready"), *(("GET", path) for path in CHAT_ROUTES)}
)
"""Answered to everybody: load balancers have no key, nor has a page before it is there."""

ROUTE_SCOPES: Mapping[tuple[str, str], frozenset[KeyScope]] = {
    ("GET", "/"): ANY_KEY,
    ("GET", "/metrics"): MANAGE,
    ("POST", "/api/v1/stream"): INFER,
    ("POST", "/api/v1/generate"): INFER,
    ("POST", "/api/v1/embed"): INFER,
    ("POST", "/api/v1/streams"): INFER,
    ("GET", "/api/v1/streams/{id}"): INFER,
    ("DELETE", "/api/v1/streams/{id}"): INFER,
    ("GET", "/api/v1/models"): LOOK,
    ("POST", "/api/v1/models/load"): MANAGE,
    ("POST", "/api/v1/models/unload"): MANAGE,
    ("GET", "/api/v1/models/status"): LOOK,
    ("GET", "/api/v1/models/config"): MANAGE,
    ("PUT", "/api/v1/models/config"): MANAGE,
    ("GET", "/api/v1/models/available"): MANAGE,
    ("POST", "/api/v1/models/verify"): MANAGE,
    ("POST", "/api/v1/models/delete"): MANAGE,
    ("POST", "/api/v1/models/clean"): MANAGE,
    ("GET", "/api/v1/memory"): MANAGE,
    ("GET", "/api/v1/collections"): LOOK,
    ("POST", "/api/v1/collections"): MANAGE,
    ("GET", "/api/v1/collections/{id}"): LOOK,
    ("PATCH", "/api/v1/collections/{id}"): MANAGE,
    ("DELETE", "/api/v1/collections/{id}"): MANAGE,
    ("POST", "/api/v1/collections/{id}/models"): MANAGE,
    ("DELETE", "/api/v1/collections/{id}/models"): MANAGE,
    ("GET", "/api/v1/export"): MANAGE,
    ("POST", "/api/v1/import"): MANAGE,
    ("GET", "/api/v1/downloads"): MANAGE,
    ("POST", "/api/v1/downloads"): MANAGE,
    ("GET", "/api/v1/downloads/{id}"): MANAGE,
    ("DELETE", "/api/v1/downloads/{id}"): MANAGE,
    ("GET", "/api/v1/downloads/{id}/events"): MANAGE,
    ("POST", "/api/v1/downloads/{id}/pause"): MANAGE,
    ("POST", "/api/v1/downloads/{id}/resume"): MANAGE,
    ("POST", "/api/v1/downloads/{id}/cancel"): MANAGE,
    ("GET", "/api/v1/rotations"): MANAGE,
    ("GET", "/api/v1/rotations/{name}"): MANAGE,
    ("PUT", "/api/v1/rotations/{name}"): MANAGE,
    ("DELETE", "/api/v1/rotations/{name}"): MANAGE,
    ("POST", "/api/v1/rotations/{name}/pause"): MANAGE,
    ("POST", "/api/v1/rotations/{name}/resume"): MANAGE,
    ("POST", "/api/v1/rotations/{name}/advance"): MANAGE,
    ("GET", "/api/v1/rotations/{name}/history"): MANAGE,
    ("GET", "/api/v1/keys"): ADMIN,
    ("POST", "/api/v1/keys"): ADMIN,
    ("DELETE", "/api/v1/keys/{id}"): ADMIN,
    ("GET", "/api/v1/hub/models"): MANAGE,
    ("GET", "/api/v1/hub/models/{name:path}"): MANAGE,
    ("GET", "/api/v1/hub/recommended"): LOOK,
    ("GET", "/api/v1/settings/hf-token"): MANAGE,
    ("PUT", "/api/v1/settings/hf-token"): MANAGE,
    ("DELETE", "/api/v1/settings/hf-token"): MANAGE,
    ("GET", "/api/v1/decisions"): LOOK,
    ("GET", "/api/v1/decisions/{id}"): LOOK,
    ("GET", "/api/v1/routes"): LOOK,
    ("POST", "/api/v1/routes/explain"): LOOK,
    ("GET", "/api/v1/routes/{name:path}"): LOOK,
    ("PUT", "/api/v1/routes/{name:path}"): MANAGE,
    ("DELETE", "/api/v1/routes/{name:path}"): MANAGE,
    ("POST", "/v1/chat/completions"): INFER,
    ("POST", "/v1/completions"): INFER,
    ("POST", "/v1/embeddings"): INFER,
    ("GET", "/v1/models"): LOOK,
    ("GET", "/v1/models/{id:path}"): LOOK,
    # The fields of each document have scopes of their own: schema/access.py.
    ("*", "/graphql"): ANY_KEY,
    ("WEBSOCKET", "/graphql"): ANY_KEY,
}
"""Any of a route's scopes opens it."""

LATE_KEYS = frozenset({("WEBSOCKET", "/graphql")})
"""Routes that take the key in the first message, and do nothing before: browsers cannot send
headers with a WebSocket."""

PAGES = frozenset({("GET", "/"), ("*", "/graphql")})
"""Routes that show a page without data to a browser that opens them; who has no key and asks for
just that passes without a Caller."""

STREAM_ROUTE = ("GET", "/api/v1/streams/{id}")
"""Read with a stream's own token in the URL, too: EventSource cannot send a key."""

TOKEN_HOLDER = Caller("token", frozenset({KeyScope.INFER}))
"""Who has a stream's token and no key. No key has this id, so no stream is his own."""

_CREDENTIALS = frozenset({b"authorization", b"x-api-key"})
"""The headers that `read_credential` reads."""

LIMIT_HEADERS = (
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
)


class Door:
    """Knows where the gateway listens, and so who stands before it without a key."""

    def __init__(self, host: str) -> None:
        """`host` is the address that the gateway listens on."""
        self._on_loopback = is_loopback(host)

    def is_local(self, scope: Scope) -> bool:
        """Tell whether a request comes from this machine and from nowhere else."""
        return self._on_loopback and is_loopback(_address_of(scope))


class RequireKeys:
    """Lets in who has a key whose scope opens the route, and puts the Caller into the ASGI scope.

    As long as there is no key, only this machine is let in, and only where the gateway listens on
    loopback. What comes to one of LATE_KEYS without a credential passes without a Caller, and so
    does a browser that opens one of PAGES.
    """

    def __init__(
        self,
        app: ASGIApp,
        gatekeeper: Gatekeeper,
        streams: StreamService,
        routes: Sequence[BaseRoute],
        door: Door,
    ) -> None:
        self._app = app
        self._gatekeeper = gatekeeper
        self._streams = streams
        self._routes = routes
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        entry = self._entry_of(scope)
        if entry in OPEN_ROUTES:
            await self._app(scope, receive, send)
            return
        limited = _Limited(send)
        try:
            caller = self._identify(scope, entry)
            if caller is not None:
                _require_scope(caller, entry)
                limited.allowance = self._gatekeeper.count_request(caller)
                if limited.allowance is not None:
                    require(limited.allowance)
        except GatewayError as error:
            await _refuse(error, scope, receive, limited)
            return
        if caller is not None:
            scope[CALLER] = caller
        if caller is None or scope["type"] == "websocket":
            # A socket looks after its own end: it has a close code to tell.
            await self._app(scope, receive, limited)
        else:
            await self._serve(caller, scope, receive, limited)

    async def _serve(
        self, caller: Caller, scope: Scope, receive: Receive, send: "_Limited"
    ) -> None:
        with anyio.CancelScope() as work:
            watch = self._gatekeeper.admitted(caller, work.cancel)
            with watch if self._gatekeeper.needs_keys else nullcontext():
                await self._app(scope, receive, send)
        if work.cancelled_caught and not send.is_started:
            await _refuse(KeyRevoked("The key was revoked."), scope, receive, send)
        # Else the reply stays incomplete, on which the server cuts the connection.

    def _identify(self, scope: Scope, entry: tuple[str, str] | None) -> Caller | None:
        headers = [
            (name.decode(), value.decode("latin-1"))
            for name, value in scope["headers"]
            if name in _CREDENTIALS
        ]
        if not self._gatekeeper.needs_keys:
            if self._door.is_local(scope):
                return identify_stranger(headers)
            raise Forbidden(
                "This gateway has no API keys yet, so it serves its own machine only.",
                hint="The operator can make one there: `gateway keys create NAME`.",
            )
        credential = read_credential(headers)
        if credential is not None:
            return self._gatekeeper.authenticate(credential, _address_of(scope))
        if entry == STREAM_ROUTE and self._has_token(scope):
            return TOKEN_HOLDER
        if entry in LATE_KEYS or (entry in PAGES and opens_page(scope)):
            return None
        raise Unauthenticated("An API key is needed.")

    def _has_token(self, scope: Scope) -> bool:
        token = QueryParams(scope["query_string"]).get("token", "")
        return self._streams.tokens.admits(scope["path"].rpartition("/")[2], token)

    def _entry_of(self, scope: Scope) -> tuple[str, str] | None:
        """Return the table's name of the route that will answer; None when there is none."""
        for route in self._routes:
            match, _ = route.matches(scope)
            if match is Match.FULL:
                assert isinstance(route, Route | WebSocketRoute)
                if scope["type"] == "websocket":
                    return "WEBSOCKET", route.path
                if isinstance(route, Route) and route.methods is None:
                    return "*", route.path
                method = "GET" if scope["method"] == "HEAD" else scope["method"]
                return method, route.path
        return None


class _Limited:
    """A `send` that tells what is left of the caller's limit, and knows whether a reply began."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.allowance: Allowance | None = None
        self.is_started = False

    async def __call__(self, message: Message) -> None:
        self.is_started = True
        if self.allowance is not None and message["type"].endswith("response.start"):
            headers = MutableHeaders(scope=message)
            values = (
                str(self.allowance.limit),
                str(self.allowance.remaining),
                _describe_span(self.allowance.reset_s),
            )
            for name, value in zip(LIMIT_HEADERS, values, strict=True):
                headers[name] = value
        await self._send(message)


def _address_of(scope: Scope) -> str:
    client = scope.get("client")
    return client[0] if client else ""


def _require_scope(caller: Caller, entry: tuple[str, str] | None) -> None:
    # Where nothing is, every key may learn that: the routing says 404 or 405.
    accepted = ANY_KEY if entry is None else ROUTE_SCOPES.get(entry, ADMIN)
    if not caller.may(accepted):
        names = " or ".join(scope for scope in KeyScope if scope in accepted)
        raise Forbidden(f"This key lacks the scope {names}.")


async def _refuse(error: GatewayError, scope: Scope, receive: Receive, send: Send) -> None:
    await error_response(scope["path"], describe(error))(scope, receive, send)


def _describe_span(seconds: float) -> str:
    """Return a time as OpenAI writes it in these headers: 350ms, 12s, 6m0s."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
