"""The short way of requests for tokens: one function in place of a stack of middlewares, each of
which costs about as much as routing the request.

It serves who would pass every check of the long way, and decides nothing itself: the checks are
the long way's own. Whoever would be refused, or is out of the ordinary, goes the long way from its
beginning, and hears from there why.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import nullcontext

import anyio
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from gateway import telemetry
from gateway.core.errors import KeyRevoked
from gateway.core.keys import CALLER, Caller
from gateway.http.access import ROUTE_SCOPES, Door
from gateway.http.disconnect import CONNECTION, WORK, Connection
from gateway.http.errors import EXCEPTION_HANDLERS
from gateway.http.hosts import Hosts
from gateway.http.middleware import RequestIds, answer_unexpected, choose_request_id
from gateway.services.gatekeeper import Gatekeeper
from gateway.services.metrics import MetricsService
from gateway.services.streams import StreamService

_UNUSUAL = frozenset({b"origin", b"x-api-key", b"x-forwarded-for", b"x-forwarded-proto"})

Endpoint = Callable[[Request], Awaitable[Response]]


class ShortWay:
    """An ASGI application before the long way of the same routes."""

    def __init__(
        self,
        long_way: Starlette,
        routes: Sequence[Route],
        *,
        hosts: Hosts,
        door: Door,
        gatekeeper: Gatekeeper,
        streams: StreamService,
        metrics: MetricsService,
        is_traced: bool = False,
    ) -> None:
        """With `is_traced` the trace of a caller goes on, which the long way sees to."""
        self.long_way = long_way
        self._endpoints: Mapping[str, Endpoint] = {
            route.path: route.endpoint for route in routes if route.methods == {"POST"}
        }
        self._hosts = hosts
        self._door = door
        self._gatekeeper = gatekeeper
        self._streams = streams
        self._metrics = metrics
        self._unusual = _UNUSUAL | ({b"traceparent"} if is_traced else set())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and not scope["root_path"]:
            endpoint = self._endpoints.get(scope["path"])
            if endpoint is not None:
                passed = self._look(scope)
                if passed is not None:
                    await self._serve(endpoint, *passed, scope, receive, send)
                    return
        await self.long_way(scope, receive, send)

    def _look(self, scope: Scope) -> tuple[Caller, str] | None:
        """Return the caller and the request's id; None for who shall go the long way."""
        host = given_id = ""
        credential: bytes | None = None
        for name, value in scope["headers"]:
            if name == b"host":
                host = host or value.decode("latin-1")
            elif name == b"authorization":
                if credential is not None or not value.startswith(b"Bearer "):
                    return None
                credential = value[7:]
            elif name == b"x-request-id":
                given_id = given_id or value.decode("latin-1")
            elif name in self._unusual:
                return None
        if self._streams.draining or not self._hosts.admit(host):
            return None
        caller = self._caller(scope, credential)
        if caller is None or caller.requests_per_minute is not None:
            return None
        if not caller.may(ROUTE_SCOPES["POST", scope["path"]]):
            return None
        return caller, choose_request_id(given_id)

    def _caller(self, scope: Scope, credential: bytes | None) -> Caller | None:
        if not self._gatekeeper.needs_keys:
            return Caller() if credential is None and self._door.is_local(scope) else None
        if credential is None:
            return None
        return self._gatekeeper.recognise(credential.decode("latin-1").strip())

    async def _serve(
        self,
        endpoint: Endpoint,
        caller: Caller,
        request_id: str,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        scope[CALLER] = caller
        reply = _Reply(send, self._metrics, request_id, scope)
        request = Request(scope, receive, reply)
        token = telemetry.request_id.set(request_id)
        try:
            with anyio.CancelScope() as scope[WORK]:
                work = scope[WORK]
                watch = self._gatekeeper.admitted(caller, work.cancel)
                with watch if self._gatekeeper.needs_keys else nullcontext():
                    response = await endpoint(request)
                    await response(scope, receive, reply)
            if work.cancelled_caught and not (reply.is_started or _has_left(scope)):
                raise KeyRevoked("The key was revoked.")
        except ClientDisconnect:
            pass  # nobody is there to be told
        except Exception as error:
            await _explain(error, request, reply)
        finally:
            telemetry.request_id.reset(token)


class _Reply:
    """A `send` that gives the reply the headers that all have, and knows whether it began."""

    def __init__(self, send: Send, metrics: MetricsService, request_id: str, scope: Scope) -> None:
        self._send = send
        self._metrics = metrics
        self._request_id = request_id
        self._scope = scope
        self.is_started = False

    def __call__(self, message: Message) -> Awaitable[None]:
        if not self.is_started:
            self.is_started = True
            RequestIds.complete(message, self._request_id, self._metrics, self._scope)
        return self._send(message)


def _has_left(scope: Scope) -> bool:
    connection: Connection | None = scope.get(CONNECTION)
    return connection is not None and connection.is_lost


async def _explain(error: Exception, request: Request, reply: _Reply) -> None:
    """Answer as the long way does."""
    if not reply.is_started:
        for kind, render in EXCEPTION_HANDLERS.items():
            if isinstance(error, kind):
                response = await render(request, error)
                await response(request.scope, request.receive, reply)
                return
    await answer_unexpected(
        error, request.scope, request.receive, reply, is_started=reply.is_started
    )
