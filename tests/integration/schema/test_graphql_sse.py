"""graphql-sse in its distinct connections mode: one request, one stream of events."""

import json
import socket as sockets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest

from gateway.core.states import ModelState
from tests.integration.schema.graphql_server import (
    TINY,
    GraphQLServer,
    make_loading_server,
)
from tests.integration.schema.sockets import WATCH

EVENTS = "text/event-stream"
URQL = "application/graphql-response+json, application/graphql+json, application/json, " + EVENTS
Event = tuple[str, Any]


@pytest.fixture
def graphql_server() -> GraphQLServer:
    return make_loading_server()


@asynccontextmanager
async def streaming(
    http: httpx.AsyncClient, query: str, method: str = "POST", accept: str = EVENTS, **rest: Any
) -> AsyncIterator[AsyncIterator[Event]]:
    """Send an operation and give the events of the answer, as they come."""
    asked = {"query": query, **rest}
    body: dict[str, Any] = {"json": asked} if method == "POST" else {"params": asked}
    async with http.stream(method, "/graphql", headers={"accept": accept}, **body) as reply:
        assert reply.status_code == 200
        assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
        yield read_events(reply)


async def read_events(reply: httpx.Response) -> AsyncIterator[Event]:
    """Yield name and data of each event; frames must end in LF LF, as urql splits them."""
    rest = ""
    async for text in reply.aiter_text():
        rest += text
        assert "\r" not in rest
        while "\n\n" in rest:
            frame, _, rest = rest.partition("\n\n")
            if frame.startswith(":"):
                yield "comment", frame
                continue
            name, data = frame.split("\n")
            assert name.startswith("event: ")
            assert data.startswith("data:")
            value = data.removeprefix("data:").strip()
            yield name.removeprefix("event: "), json.loads(value) if value else None
    assert rest == ""


def code_of(event: Event) -> str:
    name, reply = event
    assert name == "next"
    assert set(reply) == {"errors"}
    [error] = reply["errors"]
    return str(error["extensions"]["code"])


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("accept", [EVENTS, URQL])
async def test_a_subscription_tells_the_present_and_then_each_change(
    http: httpx.AsyncClient, graphql_server: GraphQLServer, method: str, accept: str
) -> None:
    async with streaming(http, WATCH, method, accept) as events:
        states = []
        async for name, reply in events:
            assert name == "next"
            update = reply["data"]["modelStateChanged"]
            states.append((update["snapshot"], [model["state"] for model in update["models"]]))
            if len(states) == 1:
                graphql_server.change(TINY, ModelState.LOADING)
            elif len(states) == 2:
                graphql_server.change(TINY, ModelState.LOADED)
            else:
                break
    assert states == [(True, ["NOT_LOADED"]), (False, ["LOADING"]), (False, ["LOADED"])]
    await graphql_server.until_idle()


async def test_only_the_models_asked_for_are_told(
    http: httpx.AsyncClient, graphql_server: GraphQLServer
) -> None:
    variables = {"models": ["memory/other"], "providers": ["memory"]}
    query = WATCH.replace(
        "subscription { modelStateChanged",
        "subscription($models: [ID!], $providers: [String!]) "
        "{ modelStateChanged(models: $models, providers: $providers)",
    )
    async with streaming(http, query, variables=variables) as events:
        _, reply = await anext(events)
        assert reply["data"]["modelStateChanged"] == {"snapshot": True, "models": []}


async def test_a_query_stays_a_query_for_clients_that_read_both(http: httpx.AsyncClient) -> None:
    answer = await http.post("/graphql", json={"query": "{ version }"}, headers={"accept": URQL})
    assert answer.headers["content-type"].startswith("application/graphql-response+json")


@pytest.mark.parametrize(
    ("query", "root"), [("{ __typename }", "Query"), ("mutation { __typename }", "Mutation")]
)
async def test_a_client_that_reads_only_events_gets_one_and_the_end(
    http: httpx.AsyncClient, query: str, root: str
) -> None:
    async with streaming(http, query) as events:
        seen = [event async for event in events]
    assert seen == [("next", {"data": {"__typename": root}}), ("complete", None)]


@pytest.mark.parametrize(
    ("method", "query"),
    [
        ("POST", "subscription {"),
        ("POST", "subscription { nothing }"),
        ("POST", "subscription A { a: __typename } subscription B { b: __typename }"),
        ("POST", "subscription { " + "a { " * 21 + "b" + " }" * 22),
        ("POST", WATCH.replace("Changed", 'Changed(models: ["tiny"])')),
        ("POST", WATCH.replace("Changed", 'Changed(providers: ["x"])')),
        ("GET", "mutation { __typename }"),
        ("GET", "fragment F on Query { version }"),
    ],
)
async def test_what_is_wrong_is_told_in_the_stream(
    http: httpx.AsyncClient, method: str, query: str
) -> None:
    async with streaming(http, query, method) as events:
        first, *rest = [event async for event in events]
    assert code_of(first) == "invalid_request"
    assert rest == [("complete", None)]


@pytest.mark.parametrize("accept", ["application/json", "*/*", ""])
async def test_a_subscription_needs_a_client_that_reads_events(
    http: httpx.AsyncClient, accept: str
) -> None:
    answer = await http.post("/graphql", json={"query": WATCH}, headers={"accept": accept})
    assert answer.status_code == 406
    assert EVENTS in answer.json()["errors"][0]["message"]


async def test_subscriptions_are_bounded(graphql_server: GraphQLServer) -> None:
    graphql_server.settings["max_subscriptions"] = 1
    async with (
        graphql_server.serving() as url,
        httpx.AsyncClient(base_url=url, trust_env=False) as http,
    ):
        async with streaming(http, WATCH) as first:
            await anext(first)
            async with streaming(http, WATCH) as second:
                assert code_of(await anext(second)) == "overloaded"
                assert await anext(second) == ("complete", None)
        await graphql_server.until_idle()
        async with streaming(http, WATCH) as third:
            assert "data" in (await anext(third))[1]


async def test_pings_are_comments(graphql_server: GraphQLServer) -> None:
    graphql_server.settings["ping_interval_s"] = 0.01
    async with (
        graphql_server.serving() as url,
        httpx.AsyncClient(base_url=url, trust_env=False) as http,
        streaming(http, WATCH) as events,
    ):
        async for event in events:
            if event == ("comment", ": ping"):
                break


async def test_a_client_that_stops_reading_is_cut(graphql_server: GraphQLServer) -> None:
    graphql_server.settings["send_timeout_s"] = 0.2
    async with graphql_server.serving() as url:
        raw = sockets.socket()
        raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
        raw.connect(("127.0.0.1", int(url.rpartition(":")[2])))
        body = json.dumps({"query": WATCH})
        raw.sendall(
            f"POST /graphql HTTP/1.1\r\nhost: localhost\r\naccept: {EVENTS}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()
        )
        feed = graphql_server.gateway.feed
        with raw, anyio.fail_after(50):
            while not feed.subscriber_count:
                await anyio.lowlevel.checkpoint()
            while feed.subscriber_count:
                graphql_server.change(TINY, ModelState.LOADING, ModelState.LOADED)
                await anyio.lowlevel.checkpoint()
