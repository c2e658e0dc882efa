"""schema.view: what it does with connections that no HTTP client makes on purpose."""

from typing import Any

import pytest

from gateway.core.keys import ANYBODY, CALLER
from gateway.http.stream import read_stream_values
from gateway.services.feed import ModelFeed
from gateway.services.gateway import Gateway
from gateway.settings import Settings
from schema import create_graphql


async def call(scope: dict[str, Any], *received: dict[str, Any]) -> list[Any]:
    """Return what the application sends in answer to `received`."""
    incoming = list(received)
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return incoming.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    # These requests end before any service is asked.
    services: dict[str, Any] = dict.fromkeys(Gateway.__struct_fields__)
    services["feed"] = ModelFeed(max_subscribers=1)
    app = create_graphql(Gateway(**services), Settings(), read_stream_values)
    await app(scope, receive, send)
    return sent


@pytest.mark.parametrize("offered", [[], ["graphql-ws"], ["chat", "graphql-ws"]])
async def test_a_websocket_of_another_protocol_is_turned_away(offered: list[str]) -> None:
    scope = {"type": "websocket", "path": "/graphql", "headers": [], "subprotocols": offered}
    scope |= {CALLER: ANYBODY}
    accepted, closed = await call(scope, {"type": "websocket.connect"})
    assert accepted["subprotocol"] is None
    assert (closed["type"], closed["code"]) == ("websocket.close", 4406)


async def test_a_client_that_leaves_while_it_sends_is_let_go() -> None:
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/graphql",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        CALLER: ANYBODY,
    }
    begun = {"type": "http.request", "body": b'{"query":', "more_body": True}
    assert await call(scope, begun, {"type": "http.disconnect"}) == []
