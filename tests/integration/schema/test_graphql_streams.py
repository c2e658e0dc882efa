"""`generate`, `streams` and `stopStream`: the events of a stream by both protocols, and its end."""

from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest
from gql import Client, gql
from gql.transport.aiohttp_websockets import AIOHTTPWebsocketsTransport
from gql.transport.exceptions import TransportQueryError
from gql.transport.websockets import WebsocketsTransport

from gateway.core.events import (
    Event,
    Finished,
    ReasoningDelta,
    Started,
    Switched,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    Usage,
    Waiting,
)
from gateway.core.messages import Message, ToolCall
from gateway.core.names import ModelRef
from gateway.core.states import StreamEnd
from tests.integration.schema.graphql_server import GraphQLServer
from tests.integration.schema.sockets import connected
from tests.integration.schema.test_graphql_sse import code_of, streaming
from tests.scripted_provider import ECHO, ScriptedProvider, answer

GENERATE = """subscription($input: GenerateInput!) { generate(input: $input) {
  __typename streamId number
  ... on WaitingEvent { stage position fraction etaSeconds }
  ... on StartedEvent { model }
  ... on DeltaEvent { text reasoning toolCall { index id name arguments }
                      logprobs { token bytes logprob top { token } } }
  ... on SwitchedEvent { source target reason }
  ... on FinishedEvent { end usage { promptTokens completionTokens } timings { totalMs } }
} }"""
HELLO = {"model": "scripted/echo", "messages": [{"role": "USER", "content": "hello"}]}
STREAMS = """{ streams {
  id requestedModel model face detached hasReader lastEvent usage { completionTokens }
} }"""
STOP = "mutation($id: ID!) { stopStream(id: $id) }"
SCRIPT: list[Event] = [
    Waiting("queued", position=2),
    Waiting("loading", fraction=0.5, eta_s=1.5),
    Started(ECHO, prompt_tokens=3),
    ReasoningDelta("hm"),
    TextDelta(
        "he\r\n", logprobs=(TokenLogprob("he", b"he", -0.5, (TokenLogprob("ho", b"ho", -1),)),)
    ),
    Switched(ECHO, ModelRef("scripted", "other"), "it broke"),
    ToolCallDelta(0, ToolCall("c1", "look", '{"at": 1}')),
    Finished("tool_calls", Usage(3, 4)),
]


@pytest.fixture
def provider() -> ScriptedProvider:
    return ScriptedProvider(SCRIPT)


@pytest.fixture
def graphql_server(provider: ScriptedProvider) -> GraphQLServer:
    return GraphQLServer({"scripted": provider})  # type: ignore[dict-item]


async def last_end(server: GraphQLServer) -> StreamEnd | None:
    """Return how the newest stream ended, once none runs."""
    await server.gateway.streams.wait_idle()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.gateway.recorder.run)
        assert await server.gateway.recorder.flush(5)
        tasks.cancel_scope.cancel()
    [session] = await server.gateway.sessions.recent(1)
    return session.closed.end if session.closed else None


def require_script(told: list[dict[str, Any]]) -> None:
    """Check that `told` is what SCRIPT says."""
    assert len({event.pop("streamId") for event in told}) == 1
    assert [event.pop("number") for event in told] == list(range(1, 9))
    finished = told[-1]
    assert finished.pop("timings")["totalMs"] > 0
    nothing = {"text": None, "reasoning": None, "toolCall": None, "logprobs": []}
    logprob = {"token": "he", "bytes": [104, 101], "logprob": -0.5, "top": [{"token": "ho"}]}
    call = {"index": 0, "id": "c1", "name": "look", "arguments": '{"at": 1}'}
    wait = {"__typename": "WaitingEvent", "position": None, "fraction": None, "etaSeconds": None}
    delta = {"__typename": "DeltaEvent", **nothing}
    assert told == [
        {**wait, "stage": "QUEUED", "position": 2},
        {**wait, "stage": "LOADING", "fraction": 0.5, "etaSeconds": 1.5},
        {"__typename": "StartedEvent", "model": "scripted/echo"},
        {**delta, "reasoning": "hm"},
        {**delta, "text": "he\r\n", "logprobs": [logprob]},
        {
            "__typename": "SwitchedEvent",
            "source": "scripted/echo",
            "target": "scripted/other",
            "reason": "it broke",
        },
        {**delta, "toolCall": call},
        {
            "__typename": "FinishedEvent",
            "end": "TOOL_CALLS",
            "usage": {"promptTokens": 3, "completionTokens": 4},
        },
    ]


async def test_an_event_stream_has_every_event(
    http: httpx.AsyncClient, provider: ScriptedProvider
) -> None:
    variables = {"input": {**HELLO, "options": {"temperature": 0.5, "logprobs": 1}}}
    async with streaming(http, GENERATE, variables=variables) as events:
        *told, end = [event async for event in events]
    assert end == ("complete", None)
    require_script([data["data"]["generate"] for _, data in told])
    [request] = provider.requests
    assert request.messages == (Message.user("hello"),)
    assert (request.options.temperature, request.options.logprobs) == (0.5, 1)


@pytest.fixture(params=[WebsocketsTransport, AIOHTTPWebsocketsTransport])
async def session(request: pytest.FixtureRequest, graphql_url: str) -> AsyncIterator[Any]:
    transport = request.param(url=graphql_url.replace("http:", "ws:"))
    async with Client(transport=transport) as session:
        yield session


async def test_gql_has_every_event(session: Any) -> None:
    asked = gql(GENERATE)
    asked.variable_values = {"input": HELLO}
    require_script([data["generate"] async for data in session.subscribe(asked)])


async def test_a_failure_is_an_error_after_what_was_said(
    session: Any, provider: ScriptedProvider
) -> None:
    provider.script = [Started(ECHO), TextDelta("a")]
    asked = gql(GENERATE)
    asked.variable_values = {"input": HELLO}
    told = []
    with pytest.raises(TransportQueryError) as caught:
        async for data in session.subscribe(asked):
            told.append(data["generate"]["__typename"])
    assert told == ["StartedEvent", "DeltaEvent"]
    assert caught.value.errors is not None
    assert caught.value.errors[0]["extensions"]["code"] == "incomplete_stream"


async def test_who_ends_the_subscription_stops_the_model(
    session: Any, provider: ScriptedProvider, graphql_server: GraphQLServer
) -> None:
    provider.script = [Started(ECHO), anyio.Event()]
    asked = gql(GENERATE)
    asked.variable_values = {"input": HELLO}
    events = session.subscribe(asked)
    await anext(events)
    await events.aclose()
    with anyio.fail_after(5):
        await provider.closed.wait()
        assert await last_end(graphql_server) is StreamEnd.CANCELLED


async def test_streams_are_listed_and_stopped_by_their_caller_alone(
    http: httpx.AsyncClient, provider: ScriptedProvider, graphql_server: GraphQLServer
) -> None:
    provider.script = [Started(ECHO), TextDelta("a"), anyio.Event()]

    async def ask(key: str, query: str, **variables: str) -> Any:
        headers = {"authorization": f"Bearer {key}"}
        asked = {"query": query, "variables": variables}
        return (await http.post("/graphql", json=asked, headers=headers)).json()

    http.headers["authorization"] = "Bearer ours"
    async with streaming(http, GENERATE, variables={"input": HELLO}) as events:
        first, _ = await anext(events), await anext(events)
        stream_id = first[1]["data"]["generate"]["streamId"]
        assert (await ask("theirs", STREAMS))["data"]["streams"] == []
        assert (await ask("ours", STREAMS))["data"]["streams"] == [
            {
                "id": stream_id,
                "requestedModel": "scripted/echo",
                "model": "scripted/echo",
                "face": "graphql",
                "detached": False,
                "hasReader": True,
                "lastEvent": 2,
                "usage": {"completionTokens": 1},
            }
        ]
        refused = await ask("theirs", STOP, id=stream_id)
        assert refused["data"] == {"stopStream": None}
        assert refused["errors"][0]["extensions"]["code"] == "stream_not_found"
        assert (await ask("ours", STOP, id=stream_id))["data"] == {"stopStream": True}
        _, last = await anext(events)
        assert last["data"]["generate"]["end"] == "CANCELLED"
        assert await anext(events) == ("complete", None)
    assert (await ask("ours", STOP, id=stream_id))["data"] == {"stopStream": False}
    assert await last_end(graphql_server) is StreamEnd.CANCELLED


async def test_a_detached_stream_goes_on_and_is_read_over_http(
    http: httpx.AsyncClient, provider: ScriptedProvider, graphql_server: GraphQLServer
) -> None:
    gate = anyio.Event()
    provider.script = [*answer("he")[:-1], gate, *answer("llo")[1:]]
    variables = {"input": {**HELLO, "detached": True}}
    async with streaming(http, GENERATE, variables=variables) as events:
        _, first = await anext(events)
    [stream] = graphql_server.gateway.streams.of_caller("")
    with anyio.fail_after(5):
        while stream.has_reader:
            await anyio.lowlevel.checkpoint()
    gate.set()
    path = f"/api/v1/streams/{first['data']['generate']['streamId']}"
    reply = await http.get(path, headers={"last-event-id": "1"})
    assert b'"he"' in reply.content and b'"llo"' in reply.content
    assert b"event: finished" in reply.content and b"event: started" not in reply.content


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"prompt": "both"}, "invalid_request"),
        ({"messages": []}, "invalid_request"),
        ({"messages": None}, "invalid_request"),
        ({"messages": [{"role": "USER", "content": "\x00"}]}, "invalid_text"),
        ({"options": {"temperature": 3}}, "invalid_request"),
        ({"keepAliveSeconds": 1e300}, "invalid_request"),
        ({"model": "nobody/none"}, "model_not_found"),
    ],
)
async def test_what_cannot_be_answered_is_refused(
    http: httpx.AsyncClient, wrong: dict[str, Any], code: str
) -> None:
    async with streaming(http, GENERATE, variables={"input": {**HELLO, **wrong}}) as events:
        assert code_of(await anext(events)) == code
        assert await anext(events) == ("complete", None)


async def test_a_stream_over_a_websocket_has_the_grace_of_a_drain(
    graphql_server: GraphQLServer, provider: ScriptedProvider
) -> None:
    gate = anyio.Event()
    graphql_server.limits = {"leave_s": 0.0}
    provider.script = [Started(ECHO), gate, Finished("stop", Usage(1, 1))]
    async with (
        graphql_server.serving() as url,
        connected(f"{url}/graphql") as socket,
        anyio.create_task_group() as tasks,
    ):
        await socket.subscribe("a", GENERATE, variables={"input": HELLO})
        await socket.receive()
        tasks.start_soon(graphql_server.gateway.drain, 3600)
        await graphql_server.gateway.feed.wait_closed()
        for _ in range(100):
            await anyio.lowlevel.checkpoint()
        gate.set()
        last = await socket.receive()
        assert last["payload"]["data"]["generate"]["end"] == "STOP"
        assert await socket.receive() == {"id": "a", "type": "complete"}
        assert await socket.closing() == (1001, "Going away")


async def test_a_stream_over_a_websocket_is_told_when_the_grace_is_over(
    graphql_url: str, graphql_server: GraphQLServer, provider: ScriptedProvider
) -> None:
    provider.script = [Started(ECHO), anyio.Event()]
    async with connected(graphql_url) as socket:
        await socket.subscribe("a", GENERATE, variables={"input": HELLO})
        await socket.receive()
        await graphql_server.gateway.drain(0)
        ended = await socket.receive()
        assert [error["extensions"]["code"] for error in ended["payload"]] == ["shutting_down"]
        assert await socket.closing() == (1001, "Going away")
