"""GraphQL over HTTP: statuses, media types and sizes.

Source: https://graphql.github.io/graphql-over-http/draft/. A wrong document answers 200 to clients
that want `application/json` (many of them drop the body of a 4xx), and 400 to clients that want
`application/graphql-response+json`.
"""

from collections.abc import Mapping
from typing import cast
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket
from strawberry.http import GraphQLRequestData
from strawberry.schema.exceptions import InvalidOperationTypeError
from strawberry.types.graphql import OperationType

from gateway.core.errors import Forbidden, Unauthenticated
from gateway.core.keys import CALLER, Caller
from gateway.settings import Settings
from schema.body import Refusal, parse_body, parse_query_string, read_body
from schema.errors import render_error
from schema.execution import Executor, Reply, encode_json
from schema.media import (
    EVENT_STREAM,
    JSON,
    RESPONSE,
    accepts_events,
    choose_media_type,
    is_browser,
    is_form,
    is_json,
)
from schema.page import Page
from schema.socket import Sockets
from schema.sse import EventStream

_ALLOWED = {
    "GET": frozenset({OperationType.QUERY}),
    "POST": frozenset({OperationType.QUERY, OperationType.MUTATION}),
}


class GraphQLView:
    """The endpoint: requests are answered here, WebSockets by `sockets`; with a `page`, browsers
    that ask nothing see it."""

    def __init__(
        self, executor: Executor, sockets: Sockets, page: Page | None, settings: Settings
    ) -> None:
        self._executor = executor
        self.sockets = sockets
        self._page = page
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self.sockets.serve(WebSocket(scope, receive, send))
            return
        request = Request(scope, receive)
        try:
            response = await self._answer(request)
        except Refusal as refusal:
            response = _render_refusal(refusal, _media_type_for(request.headers) or JSON)
        except ClientDisconnect:
            return
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        if request.method not in _ALLOWED:
            raise Refusal(405, "GraphQL is asked with GET or POST.", {"allow": "GET, POST"})
        if self._page is not None and _asks_nothing(request):
            return HTMLResponse(self._page.html, headers=self._page.headers)
        caller = _caller_of(request)
        media_type = _media_type_for(request.headers)
        reads_events = accepts_events(request.headers.get("accept", ""))
        if media_type is None and not reads_events:
            raise Refusal(406, f"The answer can be {RESPONSE}, {JSON} or {EVENT_STREAM}.")
        asked = await _read(request)
        allowed = _ALLOWED[request.method]
        if media_type is not None:
            try:
                return _render(await self._executor.answer(asked, allowed, caller), media_type)
            except InvalidOperationTypeError as error:
                if error.operation_type is not OperationType.SUBSCRIPTION:
                    message = f"{error.as_http_error_reason(request.method)}."
                    raise Refusal(405, message, {"allow": "POST"}) from None
        if not reads_events:
            raise Refusal(406, f"A subscription is answered as {EVENT_STREAM}, or by WebSocket.")
        return EventStream(
            self._executor.stream(asked, allowed | {OperationType.SUBSCRIPTION}, caller),
            self._settings,
        )


def _caller_of(request: Request) -> Caller:
    """Return who asks; raise Unauthenticated for one who was let in to see the page alone."""
    caller: Caller | None = request.scope.get(CALLER)
    if caller is None:
        raise Unauthenticated("An API key is needed.")
    return caller


_HEADERS = {"cache-control": "no-store", "vary": "accept"}


def _media_type_for(headers: Mapping[str, str]) -> str | None:
    return choose_media_type(headers.get("accept", ""))


def _asks_nothing(request: Request) -> bool:
    """Tell whether a person opened the address in a browser."""
    is_empty = request.method == "GET" and "query" not in request.query_params
    return is_empty and is_browser(request.headers.get("accept", ""))


async def _read(request: Request) -> GraphQLRequestData:
    if request.method == "GET":
        return parse_query_string(cast(Mapping[str, str], request.query_params))
    _require_json(request.headers)
    body = await read_body(request.stream(), request.headers.get("content-length"))
    return parse_body(body)


def _require_json(headers: Mapping[str, str]) -> None:
    content_type = headers.get("content-type", "")
    if is_json(content_type):
        return
    if is_form(content_type) and _is_cross_origin(headers):
        raise Refusal(403, "Other sites may not send forms here.")
    raise Refusal(415, f"The body must be {JSON} in UTF-8.", {"accept": JSON})


def _is_cross_origin(headers: Mapping[str, str]) -> bool:
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != headers.get("host")


def _render(reply: Reply, media_type: str) -> Response:
    return Response(
        encode_json(reply),
        status_code=_choose_status(reply, media_type),
        media_type=f"{media_type}; charset=utf-8",
        headers=_HEADERS,
    )


def _choose_status(reply: Reply, media_type: str) -> int:
    if "data" in reply:
        return 200
    if reply["errors"][0]["extensions"]["code"] == Forbidden.code:
        return 403
    return 400 if media_type == RESPONSE else 200


def _render_refusal(refusal: Refusal, media_type: str) -> Response:
    return JSONResponse(
        {"errors": [render_error(refusal.as_error())]},
        status_code=refusal.status,
        media_type=f"{media_type}; charset=utf-8",
        headers={**_HEADERS, **refusal.headers},
    )
