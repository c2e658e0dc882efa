"""Clients that come all at once, at a server whose event loop is busy."""

import asyncio
import socket

import uvicorn
import uvloop
from starlette.responses import PlainTextResponse

from gateway.http.server import DrainingServer, listen

CLIENTS = 200
TURNS = 20
"""A turn of a busy event loop takes some 50 ms: that is a second until the last is heard."""


def test_a_crowd_of_clients_is_let_in_within_a_few_turns() -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(_turns_until_all_are_in()) <= TURNS


async def _turns_until_all_are_in() -> int:
    async def drain(grace_s: float) -> None:
        raise AssertionError

    started = asyncio.Event()
    config = uvicorn.Config(PlainTextResponse("hello"), lifespan="off", log_config=None)
    server = DrainingServer(config, drain=drain, grace_s=0, started=lambda url: started.set())
    with listen("127.0.0.1", 0) as listener:
        serving = asyncio.create_task(server.serve([listener]))
        await started.wait()
        # The kernel connects them all before the event loop goes on.
        address = listener.getsockname()
        clients = [socket.create_connection(address) for _ in range(CLIENTS)]
        turns = 0
        while len(server.server_state.connections) < CLIENTS:
            await asyncio.sleep(0)
            turns += 1
        for client in clients:
            client.close()
        server.should_exit = True
        await serving
    return turns
