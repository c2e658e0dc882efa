"""GraphQL over HTTP: statuses, media types and sizes, on top of Strawberry's ASGI application.

Source: https://graphql.github.io/graphql-over-http/draft/. A wrong document answers 200 to clients
that want `application/json` (many of them drop the body of a 4xx), and 400 to clients that want
`application/graphql-response+json`.
"""

from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import urlsplit

from cross_web import AsyncHTTPRequestAdapter, HTTPException, StarletteRequestAdapter
from graphql import GraphQLError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketClose
from strawberry.asgi import GraphQL
from strawberry.http import GraphQLHTTPResponse, GraphQLRequestData
from strawberry.http.base import BaseRequestProtocol
from strawberry.schema.exceptions import InvalidOperationTypeError
from strawberry.types import ExecutionResult

from gateway.services.gateway import Gateway
from schema.body import Refusal, parse_body, parse_query_string, read_body
from schema.context import Context
from schema.errors import is_request_error, render_error
from schema.media import JSON, RESPONSE, choose_media_type, is_browser, is_form, is_json
from schema.page import Page
from schema.query import GatewaySchema


class _BoundedRequest(StarletteRequestAdapter):
    async def get_body(self) -> bytes:
        return await read_body(self._request.stream(), self.headers.get("content-length"))


class GraphQLView(GraphQL[Context, None]):
    """Answers queries over HTTP; with a `page`, shows it to browsers that ask nothing."""

    request_adapter_class = _BoundedRequest

    def __init__(self, schema: GatewaySchema, gateway: Gateway, page: Page | None) -> None:
        super().__init__(schema, subscription_protocols=())
        self._gateway = gateway
        self._page = page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await WebSocketClose()(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            response = await self.run(request)
        except Refusal as refusal:
            response = _render_refusal(refusal, _media_type_for(request.headers) or JSON)
        except ClientDisconnect:
            return
        await response(scope, receive, send)

    async def get_context(
        self, request: Request | WebSocket, response: Response | WebSocket
    ) -> Context:
        return Context(self._gateway)

    async def get_sub_response(self, request: Request | WebSocket) -> Response:
        """Return what carries the media type from the request to `create_response`."""
        return Response(media_type=_media_type_for(request.headers) or JSON)

    def is_request_allowed(self, request: BaseRequestProtocol) -> bool:
        if request.method not in ("GET", "POST"):
            raise Refusal(405, "GraphQL is asked with GET or POST.", {"allow": "GET, POST"})
        return True

    def should_render_graphql_ide(self, request: BaseRequestProtocol) -> bool:
        asks_nothing = request.method == "GET" and "query" not in request.query_params
        return bool(self._page and asks_nothing and is_browser(request.headers.get("accept", "")))

    async def render_graphql_ide(self, request: Request) -> Response:
        assert self._page is not None
        return HTMLResponse(self._page.html, headers=self._page.headers)

    async def parse_http_body(self, request: AsyncHTTPRequestAdapter) -> GraphQLRequestData:
        if _media_type_for(request.headers) is None:
            raise Refusal(406, f"The answer can be {RESPONSE} or {JSON}.")
        if request.method == "GET":
            return parse_query_string(cast(Mapping[str, str], request.query_params))
        _require_json(request.headers)
        return parse_body(await request.get_body())

    async def execute_single(self, *args: Any, **kwargs: Any) -> ExecutionResult:
        try:
            return await super().execute_single(*args, **kwargs)
        except HTTPException as error:
            if isinstance(error.__cause__, InvalidOperationTypeError):
                raise Refusal(405, f"{error.reason}.", {"allow": "POST"}) from error
            # No operation, or not the one that was named: the document's fault like any other.
            return ExecutionResult(data=None, errors=[GraphQLError(error.reason)])

    async def process_result(
        self, request: Request, result: ExecutionResult
    ) -> GraphQLHTTPResponse:
        """Return the reply: without `data` when nothing was executed."""
        reply: GraphQLHTTPResponse = {}
        if result.errors:
            reply["errors"] = [render_error(error) for error in result.errors]
        if result.data is not None or not all(map(is_request_error, result.errors or ())):
            reply["data"] = result.data
        return reply

    def create_response(
        self,
        response_data: GraphQLHTTPResponse | list[GraphQLHTTPResponse],
        sub_response: Response,
    ) -> Response:
        is_modern = sub_response.media_type == RESPONSE
        return Response(
            self.encode_json(response_data),
            status_code=400 if is_modern and "data" not in response_data else 200,
            media_type=f"{sub_response.media_type}; charset=utf-8",
            headers=_HEADERS,
        )


_HEADERS = {"cache-control": "no-store", "vary": "accept"}


def _media_type_for(headers: Mapping[str, str]) -> str | None:
    return choose_media_type(headers.get("accept", ""))


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


def _render_refusal(refusal: Refusal, media_type: str) -> Response:
    return JSONResponse(
        {"errors": [render_error(refusal.as_error())]},
        status_code=refusal.status,
        media_type=f"{media_type}; charset=utf-8",
        headers={**_HEADERS, **refusal.headers},
    )
