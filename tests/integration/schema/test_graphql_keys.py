"""Keys over GraphQL: the handshake, the first message, the scopes of fields, what revoking ends."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest
from websockets.exceptions import InvalidStatus

from gateway.core.keys import KeyOrder, KeyScope
from tests.integration.schema.graphql_server import GraphQLServer, make_loading_server
from tests.integration.schema.sockets import Socket, connected

LOOK = "{ availableModels { totalCount } }"
RECORDS = "{ sessions { id } }"


@asynccontextmanager
async def keyed(**limits: int) -> AsyncIterator[tuple[GraphQLServer, str, str, str]]:
    """Serve with one key of scope infer; give the server, its URL, the key and the key's id."""
    server = make_loading_server()
    with anyio.fail_after(30):
        async with server.serving() as url:
            order = KeyOrder("a", (KeyScope.INFER,), **limits)
            key, text = await server.gateway.keys.create(order)
            yield server, f"{url}/graphql", text, key.id


async def send_init(socket: Socket, payload: Any = None) -> None:
    await socket.send({"type": "connection_init", "payload": payload})


def carriers(key: str) -> list[dict[str, str]]:
    return [
        {"Authorization": f"Bearer {key}"},
        {"authorization": f"Bearer {key}"},
        {"X-Api-Key": key},
    ]


def code_of(payload: Any) -> str:
    code: str = payload["errors"][0]["extensions"]["code"]
    return code


async def test_a_socket_takes_its_key_from_the_handshake_or_from_the_first_message() -> None:
    async with keyed() as (_, url, key, _id):
        for headers in carriers(key):
            async with connected(url, additional_headers=headers) as socket:
                assert (await socket.ask(LOOK))["data"] == {"availableModels": {"totalCount": 1}}
            async with connected(url, is_ready=False) as socket:
                await send_init(socket, headers)
                assert await socket.receive() == {"type": "connection_ack"}
                assert (await socket.ask(LOOK))["data"] == {"availableModels": {"totalCount": 1}}


@pytest.mark.parametrize(
    "payload",
    [None, {}, {"Authorization": None}, {"Authorization": ["x"]}, {"Authorization": "Bearer x"},
     {"x-api-key": "' OR 1=1"}, {"Authorization": "Basic eA=="}, {"token": "x"}],
)  # fmt: skip
async def test_a_socket_without_the_right_key_is_closed_before_it_is_acknowledged(
    payload: Any,
) -> None:
    async with (
        keyed() as (_, url, _key, _id),
        connected(url, is_ready=False) as socket,
    ):
        await send_init(socket, payload)
        await socket.subscribe("1", LOOK)
        assert (await socket.closing())[0] == 4403


async def test_a_stranger_may_not_subscribe_before_his_key_is_known() -> None:
    async with keyed() as (_, url, _key, _id), connected(url, is_ready=False) as socket:
        await socket.subscribe("1", LOOK)
        assert (await socket.closing())[0] == 4401


async def test_a_wrong_key_in_the_handshake_is_answered_401_in_its_place() -> None:
    async with keyed() as (_, url, _key, _id):
        with pytest.raises(InvalidStatus) as refused:
            async with connected(url, additional_headers={"x-api-key": "x"}):
                raise AssertionError("it was let in")
    assert refused.value.response.status_code == 401
    assert b'"code":"unauthenticated"' in (refused.value.response.body or b"")


async def test_another_key_in_the_first_message_than_in_the_handshake_is_refused() -> None:
    async with keyed() as (server, url, key, _id):
        _, other = await server.gateway.keys.create(KeyOrder("b", (KeyScope.ADMIN,)))
        headers = {"x-api-key": key}
        async with connected(url, is_ready=False, additional_headers=headers) as socket:
            await send_init(socket, {"x-api-key": other})
            assert (await socket.closing())[0] == 4403


async def test_few_connections_may_owe_their_key_and_they_do_not_keep_others_out() -> None:
    server = make_loading_server()
    server.limits = {"strangers": 1}
    async with server.serving() as base:
        url = f"{base}/graphql"
        _, key = await server.gateway.keys.create(KeyOrder("a", (KeyScope.INFER,)))
        async with connected(url, is_ready=False) as first:
            with pytest.raises(InvalidStatus) as refused:
                async with connected(url, is_ready=False):
                    raise AssertionError("it was let in")
            assert refused.value.response.status_code == 503
            async with connected(url, additional_headers={"x-api-key": key}):
                pass
            await send_init(first, {"x-api-key": key})
            assert await first.receive() == {"type": "connection_ack"}
            async with connected(url, is_ready=False):
                pass


async def test_a_field_without_its_scope_is_refused_on_every_way() -> None:
    async with keyed() as (server, url, key, _id):
        headers = {"x-api-key": key}
        async with httpx.AsyncClient(trust_env=False, headers=headers) as client:
            mutation = 'mutation { loadModel(input: {model: "memory/tiny"}) { id } }'
            for query in (RECORDS, mutation, f"{{ version {RECORDS[1:]}"):
                reply = await client.post(url, json={"query": query})
                assert (reply.status_code, code_of(reply.json())) == (403, "forbidden")
                assert "data" not in reply.json()
            events = await client.post(
                url, json={"query": RECORDS}, headers={"accept": "text/event-stream"}
            )
            assert '"code":"forbidden"' in events.text
            assert (await client.post(url, json={"query": LOOK})).status_code == 200
            got = await client.get(url, params={"query": RECORDS})
            assert got.status_code == 403
        async with connected(url, additional_headers=headers) as socket:
            await socket.subscribe("1", mutation)
            refused = await socket.receive()
            assert refused["payload"][0]["extensions"]["code"] == "forbidden"
        assert await server.gateway.control.statuses() == []


async def test_each_operation_on_a_socket_counts_as_a_request() -> None:
    async with (
        keyed(requests_per_minute=2) as (_, url, key, _id),
        connected(url, additional_headers={"x-api-key": key}) as socket,
    ):
        assert "data" in await socket.ask(LOOK)
        await socket.subscribe("2", LOOK)
        refused = await socket.receive()
        assert refused["payload"][0]["extensions"]["code"] == "rate_limited"


async def test_revoking_a_key_closes_its_sockets_and_cuts_its_events() -> None:
    async with keyed() as (server, url, key, key_id):
        watch = {"query": "subscription { modelStateChanged { snapshot } }"}
        headers = {"x-api-key": key, "accept": "text/event-stream"}
        async with (
            httpx.AsyncClient(trust_env=False) as client,
            client.stream("POST", url, json=watch, headers=headers) as events,
            connected(url, is_ready=False) as socket,
        ):
            await send_init(socket, {"x-api-key": key})
            assert await socket.receive() == {"type": "connection_ack"}
            await socket.subscribe("1")
            assert (await socket.receive())["type"] == "next"
            await server.gateway.keys.revoke(key_id)
            with anyio.fail_after(10):
                assert await socket.closing() == (4403, "The key was revoked.")
                with pytest.raises(httpx.RemoteProtocolError):
                    async for _ in events.aiter_raw():
                        pass
        await server.until_idle()


async def test_a_socket_of_a_foreign_page_is_refused_before_its_key_is_looked_at() -> None:
    async with keyed() as (_, url, key, _id):
        headers = {"x-api-key": key, "origin": "http://evil"}
        with pytest.raises(InvalidStatus) as refused:
            async with connected(url, additional_headers=headers):
                raise AssertionError("it was let in")
    assert refused.value.response.status_code == 403


async def test_a_socket_to_anywhere_else_needs_its_key_at_once() -> None:
    async with keyed() as (_, url, _key, _id):
        with pytest.raises(InvalidStatus) as refused:
            async with connected(url.replace("graphql", "nowhere")):
                raise AssertionError("it was let in")
    assert refused.value.response.status_code == 401
