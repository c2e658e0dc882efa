"""modelStateChanged as the clients that people use see it: the present, then what happens."""

import json
from collections.abc import AsyncIterator
from typing import Any

import anyio.to_thread
import pytest
from gql import Client, gql
from gql.transport.aiohttp_websockets import AIOHTTPWebsocketsTransport
from gql.transport.websockets import WebsocketsTransport

from tests.integration.clients import node
from tests.integration.schema.graphql_server import GraphQLServer, make_loading_server

WATCH = "subscription { modelStateChanged { snapshot models { id state message } } }"
LOAD = 'mutation { loadModel(input: {model: "memory/tiny"}) { id state } }'


@pytest.fixture
def graphql_server() -> GraphQLServer:
    return make_loading_server()


@pytest.fixture(params=[WebsocketsTransport, AIOHTTPWebsocketsTransport])
async def session(request: pytest.FixtureRequest, graphql_url: str) -> AsyncIterator[Any]:
    transport = request.param(url=graphql_url.replace("http:", "ws:"))
    async with Client(transport=transport) as session:
        yield session


async def test_gql_sees_the_present_and_then_the_load(
    session: Any, graphql_server: GraphQLServer
) -> None:
    updates = session.subscribe(gql(WATCH))
    first = (await anext(updates))["modelStateChanged"]
    tiny = {"id": "memory/tiny", "state": "NOT_LOADED", "message": None}
    assert first == {"snapshot": True, "models": [tiny]}
    answer = await session.execute(gql(LOAD))
    assert answer["loadModel"]["id"] == "memory/tiny"
    states: list[str] = []
    while len(states) < 2:
        update = (await anext(updates))["modelStateChanged"]
        assert not update["snapshot"]
        states += [model["state"] for model in update["models"]]
    assert states == ["LOADING", "LOADED"]
    await updates.aclose()


@pytest.mark.usefixtures("node_modules")
@pytest.mark.parametrize("protocol", ["sse", "ws"])
async def test_the_reference_clients_see_the_present_and_then_the_load(
    graphql_server: GraphQLServer, graphql_url: str, protocol: str
) -> None:
    printed = await anyio.to_thread.run_sync(
        node.run_script, "graphql_subscribe.mjs", protocol, graphql_url, "memory/tiny"
    )
    seen = json.loads(printed)
    assert seen["told"][0] == {
        "data": {
            "modelStateChanged": {
                "snapshot": True,
                "models": [{"id": "memory/tiny", "state": "NOT_LOADED"}],
            }
        }
    }
    assert "errors" not in seen["told"][1]
    assert seen["states"] == ["LOADING", "LOADED"]
    await graphql_server.until_idle()
