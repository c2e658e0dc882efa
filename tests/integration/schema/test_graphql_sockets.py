"""graphql-transport-ws as its protocol has it, and what hostile clients get."""

import json
import socket as sockets
from typing import Any

import anyio
import pytest
from websockets.exceptions import InvalidStatus

from gateway.core.states import ModelState
from tests.integration.schema.graphql_server import TINY, GraphQLServer, make_loading_server
from tests.integration.schema.sockets import PROTOCOL, WATCH, connected

COMPLETE, NEXT = "complete", "next"
SUBSCRIBE = {"id": "1", "type": "subscribe", "payload": {"query": "{ version }"}}
INIT = {"type": "connection_init"}


@pytest.fixture
def graphql_server() -> GraphQLServer:
    return make_loading_server(max_subscriptions=40)


def code_of(message: dict[str, Any]) -> str:
    """Return the code of the one error of an `error` message."""
    assert message["type"] == "error"
    [error] = message["payload"]
    assert set(error["extensions"]) == {"code", "hint", "retryable"}
    return str(error["extensions"]["code"])


async def test_the_newer_protocol_is_chosen_of_both(graphql_url: str) -> None:
    async with connected(graphql_url, "graphql-ws", PROTOCOL) as socket:
        assert socket.connection.subprotocol == PROTOCOL


@pytest.mark.parametrize("protocol", ["graphql-ws", "chat"])
async def test_another_protocol_is_refused(graphql_url: str, protocol: str) -> None:
    async with connected(graphql_url, protocol, is_ready=False) as socket:
        assert (await socket.closing())[0] == 4406


async def test_a_connection_has_a_request_id(graphql_url: str) -> None:
    headers = {"X-Request-Id": "mine"}
    async with connected(graphql_url, additional_headers=headers) as socket:
        response = socket.connection.response
        assert response is not None
        assert response.headers["X-Request-Id"] == "mine"


async def test_queries_and_mutations_are_answered_once(graphql_url: str) -> None:
    async with connected(graphql_url) as socket:
        for query, data in [
            (
                '{ modelStatus(model: "memory/tiny") { state } }',
                {"modelStatus": {"state": "NOT_LOADED"}},
            ),
            (
                'mutation { unloadModel(input: {model: "memory/tiny", wait: true}) { id } }',
                {"unloadModel": {"id": "memory/tiny"}},
            ),
        ]:
            await socket.subscribe("a", query)
            assert await socket.receive() == {"id": "a", "type": NEXT, "payload": {"data": data}}
            assert await socket.receive() == {"id": "a", "type": COMPLETE}


async def test_several_subscriptions_share_a_connection(
    graphql_url: str, graphql_server: GraphQLServer
) -> None:
    async with connected(graphql_url) as socket:
        await socket.subscribe("a")
        assert (await socket.receive())["id"] == "a"
        await socket.subscribe("b")
        assert (await socket.receive())["id"] == "b"
        graphql_server.change(TINY, ModelState.LOADING)
        assert {(await socket.receive())["id"], (await socket.receive())["id"]} == {"a", "b"}
        await socket.send({"id": "a", "type": COMPLETE})
        # Answered in order: the subscription is gone once the ping is answered.
        await socket.send({"type": "ping"})
        assert await socket.receive() == {"type": "pong"}
        graphql_server.change(TINY, ModelState.LOADED)
        message = await socket.receive()
        assert message["id"] == "b"
        assert graphql_server.gateway.feed.subscriber_count == 1


async def test_an_id_is_free_again_after_its_end(graphql_url: str) -> None:
    async with connected(graphql_url) as socket:
        for _ in range(3):
            await socket.subscribe("a")
            assert (await socket.receive())["type"] == NEXT
            await socket.send({"id": "a", "type": COMPLETE})
        for _ in range(3):
            assert await socket.ask("{ __typename }") == {"data": {"__typename": "Query"}}


async def test_pings_are_answered_before_and_after_the_init(graphql_url: str) -> None:
    async with connected(graphql_url, is_ready=False) as socket:
        await socket.send({"type": "ping", "payload": {"a": 1}})
        assert await socket.receive() == {"type": "pong"}
        await socket.init()
        await socket.send({"type": "pong"}, {"type": "ping", "payload": None})
        assert await socket.receive() == {"type": "pong"}


async def test_the_server_pings(graphql_server: GraphQLServer) -> None:
    graphql_server.limits = {"ping_interval_s": 0.01}
    async with graphql_server.serving() as url, connected(f"{url}/graphql") as socket:
        assert await socket.receive() == {"type": "ping"}
        assert await socket.receive() == {"type": "ping"}


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        ([SUBSCRIBE], 4401),
        ([INIT, INIT], 4429),
        ([INIT, {**SUBSCRIBE, "payload": {"query": WATCH}}, SUBSCRIBE], 4409),
        ([b"\x00\x01"], 4400),
        ([json.dumps(INIT).encode()], 4400),
        ([""], 4400),
        (["{"], 4400),
        (["null"], 4400),
        (["[]"], 4400),
        (["[" * 100_000], 4400),
        (['"connection_init"'], 4400),
        ([{"type": "start"}], 4400),
        ([{"type": ["ping"]}], 4400),
        ([{"type": "connection_init", "payload": "x"}], 4400),
        ([{"id": "1"}], 4400),
        ([INIT, {"type": "subscribe", "payload": {"query": "{ version }"}}], 4400),
        ([INIT, {**SUBSCRIBE, "id": 1}], 4400),
        ([INIT, {**SUBSCRIBE, "id": ""}], 4400),
        ([INIT, {**SUBSCRIBE, "id": ["1"]}], 4400),
        ([INIT, {**SUBSCRIBE, "id": "x" * 129}], 4400),
        ([INIT, {"id": "1", "type": "subscribe"}], 4400),
        ([INIT, {**SUBSCRIBE, "payload": None}], 4400),
        ([INIT, {**SUBSCRIBE, "payload": []}], 4400),
        ([INIT, {**SUBSCRIBE, "payload": {}}], 4400),
        ([INIT, {**SUBSCRIBE, "payload": {"query": 1}}], 4400),
        ([INIT, {**SUBSCRIBE, "payload": {"query": "{ version }", "variables": []}}], 4400),
        ([INIT, {"type": "complete"}], 4400),
        ([INIT, {"type": "next", "id": "1", "payload": {}}], 4400),
        ([INIT, json.dumps({**SUBSCRIBE, "id": "é" * 1_000_000})], 1009),
    ],
)
async def test_a_breach_of_the_protocol_ends_the_connection(
    graphql_url: str, graphql_server: GraphQLServer, sent: list[Any], code: int
) -> None:
    async with connected(graphql_url, is_ready=False) as socket:
        await socket.send(*sent)
        assert (await socket.closing())[0] == code
    await graphql_server.until_idle()


async def test_a_client_that_never_initialises_is_cut(graphql_server: GraphQLServer) -> None:
    graphql_server.limits = {"init_timeout_s": 0.05}
    async with graphql_server.serving() as url:
        async with connected(f"{url}/graphql", is_ready=False) as silent:
            assert (await silent.closing())[0] == 4408
        async with connected(f"{url}/graphql") as socket:
            await anyio.sleep(0.1)
            assert "data" in await socket.ask("{ version }")


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        ({"query": "{"}, "invalid_request"),
        ({"query": "{ nothing }"}, "invalid_request"),
        ({"query": "query A { version } query B { version }"}, "invalid_request"),
        ({"query": "{ version }", "operationName": "B"}, "invalid_request"),
        ({"query": "fragment F on Query { version }"}, "invalid_request"),
        ({"query": "{ a: version " + "{ a" * 30 + "}" * 31}, "invalid_request"),
        ({"query": "# " + "x" * 30_000}, "invalid_request"),
        ({"query": "{ version }", "variables": {"a": "x" * 262_144}}, "payload_too_large"),
        ({"query": "{ version }", "variables": {"a": [1] * 5001}}, "payload_too_large"),
        (
            {"query": 'subscription { modelStateChanged(models: ["tiny"]) { snapshot } }'},
            "invalid_request",
        ),
        (
            {"query": 'subscription { modelStateChanged(providers: ["x"]) { snapshot } }'},
            "invalid_request",
        ),
        ({"query": WATCH.replace("{ id", "{ id id2")}, "invalid_request"),
        ({"query": WATCH.replace("state", "m { " * 21 + "}" * 21)}, "invalid_request"),
    ],
)
async def test_a_wrong_operation_is_told_and_costs_only_itself(
    graphql_url: str, payload: dict[str, Any], code: str
) -> None:
    async with connected(graphql_url) as socket:
        await socket.send({"id": "1", "type": "subscribe", "payload": payload})
        message = await socket.receive()
        assert message["id"] == "1"
        assert code_of(message) == code
        assert "data" in await socket.ask("{ version }")


async def test_thousands_of_subscribes_are_bounded(
    graphql_url: str, graphql_server: GraphQLServer
) -> None:
    async with connected(graphql_url) as socket:
        kinds: list[str] = []

        async def read() -> None:
            for _ in range(2000):
                message = await socket.receive()
                kinds.append(NEXT if message["type"] == NEXT else code_of(message))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            for number in range(2000):
                await socket.subscribe(str(number))
        assert kinds.count(NEXT) == graphql_server.gateway.feed.subscriber_count == 32
        assert kinds.count("overloaded") == 2000 - 32
        await socket.send({"id": "0", "type": COMPLETE})
        await socket.subscribe("again")
        assert (await socket.receive())["type"] == NEXT
    await graphql_server.until_idle()


async def test_subscriptions_are_bounded_over_all_connections(graphql_url: str) -> None:
    async with connected(graphql_url) as first, connected(graphql_url) as second:
        for number in range(30):
            await first.subscribe(str(number))
            assert (await first.receive())["type"] == NEXT
        for number in range(10):
            await second.subscribe(str(number))
            assert (await second.receive())["type"] == NEXT
        await second.subscribe("more")
        assert code_of(await second.receive()) == "overloaded"
        assert "data" in await second.ask("{ version }")


async def test_connections_are_bounded(graphql_server: GraphQLServer) -> None:
    graphql_server.limits = {"sockets": 1}
    async with graphql_server.serving() as url, connected(f"{url}/graphql"):
        with pytest.raises(InvalidStatus) as refused:
            async with connected(f"{url}/graphql"):
                pass
        response = refused.value.response
        assert response.status_code == 503
        assert b'"code":"overloaded"' in (response.body or b"")


@pytest.mark.parametrize("is_abrupt", [True, False])
async def test_the_end_of_a_connection_frees_everything(
    graphql_url: str, graphql_server: GraphQLServer, is_abrupt: bool
) -> None:
    async with connected(graphql_url) as socket:
        for number in range(8):
            await socket.subscribe(str(number))
            await socket.receive()
        assert graphql_server.gateway.feed.subscriber_count == 8
        if is_abrupt:
            socket.connection.transport.abort()
    await graphql_server.until_idle()


async def test_a_client_that_stops_reading_is_cut(graphql_server: GraphQLServer) -> None:
    graphql_server.limits = {"send_timeout_s": 0.2}
    async with graphql_server.serving() as url, anyio.create_task_group() as tasks:
        port = int(url.rpartition(":")[2])
        raw = sockets.socket()
        raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
        raw.connect(("127.0.0.1", port))
        async with connected(f"{url}/graphql", sock=raw) as deaf:
            for number in range(32):
                await deaf.subscribe(str(number))
                await deaf.receive()
            deaf.connection.transport.pause_reading()

            async def change_for_ever() -> None:
                while True:
                    graphql_server.change(TINY, ModelState.LOADING, ModelState.LOADED)
                    await anyio.lowlevel.checkpoint()

            tasks.start_soon(change_for_ever)
            async with connected(f"{url}/graphql") as other:
                while graphql_server.sockets.count > 1:
                    assert "data" in await other.ask("{ version }")
            assert graphql_server.gateway.feed.subscriber_count == 0
            tasks.cancel_scope.cancel()
            deaf.connection.transport.abort()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, 403),
    ],
)
async def test_a_foreign_page_may_not_connect(
    graphql_url: str, headers: dict[str, str], status: int
) -> None:
    with pytest.raises(InvalidStatus) as refused:
        host = headers.pop("Host", None)
        # The name in the URL becomes the Host header; the connection goes where the test says.
        url = graphql_url.replace("127.0.0.1", host) if host else graphql_url
        port = int(graphql_url.rpartition(":")[2].partition("/")[0])
        async with connected(url, additional_headers=headers, host="127.0.0.1", port=port):
            pass
    response = refused.value.response
    assert response.status_code == status
    assert b'"code":"foreign_origin"' in (response.body or b"")


async def test_the_gateway_s_own_page_and_allowed_origins_may_connect(
    graphql_server: GraphQLServer,
) -> None:
    graphql_server.settings["cors_origins"] = ("https://friend.example",)
    async with graphql_server.serving() as url:
        for origin in (url, "https://friend.example"):
            async with connected(f"{url}/graphql", origin=origin) as socket:
                assert "data" in await socket.ask("{ version }")
