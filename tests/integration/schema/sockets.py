"""A client of graphql-transport-ws that says exactly what a test tells it to."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

PROTOCOL = "graphql-transport-ws"
WATCH = "subscription { modelStateChanged { snapshot models { id state } } }"


class Socket:
    """One connection; what it gets are decoded messages."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    async def send(self, *messages: Any) -> None:
        """Send each message as a text frame, or bytes as a binary one."""
        for message in messages:
            is_raw = isinstance(message, str | bytes)
            await self.connection.send(message if is_raw else json.dumps(message))

    async def receive(self) -> Any:
        return json.loads(await self.connection.recv())

    async def init(self) -> None:
        await self.send({"type": "connection_init"})
        assert await self.receive() == {"type": "connection_ack"}

    async def subscribe(self, id: str, query: str = WATCH, **rest: Any) -> None:
        await self.send({"id": id, "type": "subscribe", "payload": {"query": query, **rest}})

    async def ask(self, query: str, **rest: Any) -> Any:
        """Return the reply to a query, whatever else is told meanwhile."""
        await self.subscribe("ask", query, **rest)
        payload = None
        while (message := await self.receive()) != {"id": "ask", "type": "complete"}:
            if message.get("id") == "ask":
                payload = message["payload"]
        return payload

    async def closing(self) -> tuple[int, str]:
        """Return the code and the reason that the server closes with, ignoring what it says."""
        try:
            while True:
                await self.connection.recv()
        except ConnectionClosed as closed:
            assert closed.rcvd is not None
            return closed.rcvd.code, closed.rcvd.reason


@asynccontextmanager
async def connected(
    graphql_url: str, *protocols: str, is_ready: bool = True, **options: Any
) -> AsyncIterator[Socket]:
    """Connect; with `is_ready`, the connection is initialised."""
    url = graphql_url.replace("http:", "ws:", 1)
    names: Any = list(protocols or (PROTOCOL,))
    async with connect(
        url, subprotocols=names, proxy=None, compression=None, max_size=None, **options
    ) as connection:
        socket = Socket(connection)
        if is_ready:
            await socket.init()
        yield socket
