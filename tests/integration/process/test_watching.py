"""The states of a real model, watched by GraphQL while it is loaded, unloaded and shut down."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio.to_thread
import pytest

from tests.integration.process.conftest import GatewayProcess
from tests.integration.schema.sockets import Socket, connected

Serve = Callable[..., GatewayProcess]

DEMO = "huggingface/demo"
WATCH = f'subscription {{ modelStateChanged(models: ["{DEMO}"]) {{ models {{ state }} }} }}'
LOAD = f'mutation {{ loadModel(input: {{model: "{DEMO}", wait: true}}) {{ state memoryBytes }} }}'
UNLOAD = f'mutation {{ unloadModel(input: {{model: "{DEMO}", wait: true}}) {{ state }} }}'


@pytest.fixture
async def gateway(serve: Serve) -> GatewayProcess:
    return await anyio.to_thread.run_sync(serve)


@pytest.fixture
async def socket(gateway: GatewayProcess) -> AsyncIterator[Socket]:
    async with connected(f"{gateway.url}/graphql") as socket:
        yield socket


async def read_states(socket: Socket, last: str) -> list[str]:
    """Return the states that the subscription tells, up to `last`."""
    states: list[str] = []
    while last not in states:
        message = await socket.receive()
        if message.get("id") == "watch":
            update = message["payload"]["data"]["modelStateChanged"]
            states += [model["state"] for model in update["models"]]
    return states


async def reply_to(socket: Socket, id: str) -> Any:
    while (message := await socket.receive()).get("id") != id:
        pass
    return message["payload"]["data"]


async def test_a_load_and_an_unload_are_told_as_they_happen(socket: Socket) -> None:
    await socket.subscribe("watch", WATCH)
    assert await read_states(socket, "NOT_LOADED") == ["NOT_LOADED"]
    await socket.subscribe("load", LOAD)
    assert await read_states(socket, "LOADED") == ["LOADING", "LOADED"]
    loaded = (await reply_to(socket, "load"))["loadModel"]
    assert loaded["state"] == "LOADED"
    assert loaded["memoryBytes"] > 1_000_000
    await socket.subscribe("unload", UNLOAD)
    assert await read_states(socket, "NOT_LOADED") == ["UNLOADING", "NOT_LOADED"]
    assert await reply_to(socket, "unload") == {"unloadModel": {"state": "NOT_LOADED"}}


async def test_a_gateway_that_is_stopped_does_not_wait_for_open_sockets(
    gateway: GatewayProcess, socket: Socket
) -> None:
    await socket.subscribe("watch", WATCH)
    await read_states(socket, "NOT_LOADED")
    async with connected(f"{gateway.url}/graphql", is_ready=False) as silent:
        gateway.terminate()
        message = await socket.receive()
        assert message["type"] == "error"
        assert message["payload"][0]["extensions"]["code"] == "shutting_down"
        assert (await socket.closing())[0] == (await silent.closing())[0] == 1001
        ended = await anyio.to_thread.run_sync(gateway.wait)
    assert ended == 0
