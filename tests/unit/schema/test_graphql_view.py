"""schema.view: what it does with connections that no HTTP client makes on purpose."""

from typing import Any, cast

from gateway.services.gateway import Gateway
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
    app = create_graphql(cast(Gateway, None), ide=False)
    await app(scope, receive, send)
    return sent


async def test_a_websocket_is_turned_away() -> None:
    scope = {"type": "websocket", "path": "/graphql", "headers": [], "subprotocols": []}
    [closed] = await call(scope, {"type": "websocket.connect"})
    assert closed["type"] == "websocket.close"


async def test_a_client_that_leaves_while_it_sends_is_let_go() -> None:
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/graphql",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }
    begun = {"type": "http.request", "body": b'{"query":', "more_body": True}
    assert await call(scope, begun, {"type": "http.disconnect"}) == []
