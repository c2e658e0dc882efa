"""Every route of the application is classified, and the tables name nothing that is not there."""

from typing import Any

from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import Receive, Scope, Send

from gateway.http.access import OPEN_ROUTES, ROUTE_SCOPES, _describe_span
from gateway.http.app import create_app
from gateway.services.gateway import Gateway
from gateway.settings import Settings


def routes_of(route: BaseRoute) -> list[tuple[str, str]]:
    """Return the entries that a route of the application has in the tables."""
    if isinstance(route, WebSocketRoute):
        return [("WEBSOCKET", route.path)]
    assert isinstance(route, Route)
    methods = {"*"} if route.methods is None else route.methods - {"HEAD"}
    return [(method, route.path) for method in sorted(methods)]


def test_every_route_is_in_exactly_one_table() -> None:
    async def graphql(scope: Scope, receive: Receive, send: Send) -> None: ...

    missing: dict[str, Any] = dict.fromkeys(Gateway.__struct_fields__)
    app = create_app(Gateway(**missing), Settings(), graphql)
    served = [entry for route in app.routes for entry in routes_of(route)]
    assert sorted(served) == sorted([*OPEN_ROUTES, *ROUTE_SCOPES])


def test_only_health_and_the_files_of_the_chat_page_are_open() -> None:
    pages = {"/chat", "/chat.css", "/chat.js", "/chat-stream.js", "/chat-events.js"}
    assert {("GET", path) for path in {"/health/live", "/health/ready"} | pages} == OPEN_ROUTES


def test_spans_are_written_as_openai_writes_them() -> None:
    spans = [_describe_span(seconds) for seconds in (0, 0.2501, 1, 59.2, 60, 125)]
    assert spans == ["0ms", "251ms", "1s", "1m0s", "1m0s", "2m5s"]
