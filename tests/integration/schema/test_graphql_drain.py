"""A gateway that shuts down: subscriptions get their end, queries still work, changes do not."""

from typing import Any

import anyio
import httpx
import pytest
from websockets.exceptions import InvalidStatus

from tests.integration.schema.graphql_server import GraphQLServer, make_loading_server
from tests.integration.schema.loading_provider import LoadingProvider
from tests.integration.schema.sockets import WATCH, connected
from tests.integration.schema.test_graphql_sse import code_of, streaming

LOAD = 'mutation { loadModel(input: {model: "memory/tiny"}) { id } }'


@pytest.fixture
def graphql_server() -> GraphQLServer:
    return make_loading_server()


def codes(reply: dict[str, Any]) -> list[str]:
    return [error["extensions"]["code"] for error in reply["errors"]]


async def test_an_event_stream_is_told_and_completed(
    http: httpx.AsyncClient, graphql_server: GraphQLServer
) -> None:
    async with streaming(http, WATCH) as events:
        await anext(events)
        await graphql_server.gateway.drain(0)
        assert code_of(await anext(events)) == "shutting_down"
        assert [event async for event in events] == [("complete", None)]
    await graphql_server.until_idle()


async def test_a_websocket_is_told_and_closed(
    graphql_url: str, graphql_server: GraphQLServer
) -> None:
    async with connected(graphql_url) as socket, connected(graphql_url) as idle:
        for name in ("a", "b"):
            await socket.subscribe(name)
            await socket.receive()
        await graphql_server.gateway.drain(0)
        ended = [await socket.receive(), await socket.receive()]
        assert {message["id"] for message in ended} == {"a", "b"}
        for message in ended:
            assert message["type"] == "error"
            assert [error["extensions"]["code"] for error in message["payload"]] == [
                "shutting_down"
            ]
        assert await socket.closing() == (1001, "Going away")
        assert await idle.closing() == (1001, "Going away")
    await graphql_server.until_idle()


async def test_an_operation_that_does_not_end_holds_up_nothing(
    graphql_server: GraphQLServer,
) -> None:
    graphql_server.limits = {"leave_s": 0.05}
    provider = graphql_server.providers["memory"]
    assert isinstance(provider, LoadingProvider)
    provider.gate = anyio.Event()
    async with graphql_server.serving() as url, connected(f"{url}/graphql") as socket:
        await socket.subscribe("a", LOAD.replace("}) {", ", wait: true}) {"))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(graphql_server.gateway.drain, 0)
            assert await socket.closing() == (1001, "Going away")


async def test_queries_are_answered_and_changes_refused(
    http: httpx.AsyncClient, graphql_server: GraphQLServer, graphql_url: str
) -> None:
    await graphql_server.gateway.drain(0)
    read = await http.post("/graphql", json={"query": "{ availableModels { totalCount } }"})
    assert read.json() == {"data": {"availableModels": {"totalCount": 1}}}
    changed = await http.post("/graphql", json={"query": LOAD})
    assert changed.json()["data"] == {"loadModel": None}
    assert codes(changed.json()) == ["shutting_down"]
    async with streaming(http, WATCH) as events:
        assert code_of(await anext(events)) == "shutting_down"
    with pytest.raises(InvalidStatus) as refused:
        async with connected(graphql_url):
            pass
    response = refused.value.response
    assert response.status_code == 503
    assert response.headers["Retry-After"] == "2"
    assert b'"code":"shutting_down"' in (response.body or b"")
