"""One request and its answer on the wire, and the steps of a script that are no bytes."""

import asyncio
import json
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any


class Do(Enum):
    """Steps of a script that are no bytes."""

    RESET = auto()  # a TCP reset, as when the server is killed
    CLOSE = auto()  # the connection ends without the end of the HTTP message


Step = bytes | asyncio.Event | Do


@dataclass
class Seen:
    """One request as it arrived. `closed` is set when the client goes before the answer's end."""

    method: str
    path: str
    headers: dict[str, str]
    raw: bytes
    connection: int
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    answered: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def body(self) -> Any:
        return json.loads(self.raw)

    async def until_closed(self) -> None:
        """Wait for `closed`; a client that stays is a failure and no hang."""
        async with asyncio.timeout(10):
            await self.closed.wait()


class Exchange:
    """One request and its answer, while it is being answered."""

    def __init__(self, seen: Seen, writer: asyncio.StreamWriter, gone: asyncio.Event) -> None:
        self.seen = seen
        self.open = True
        self._writer = writer
        self._gone = gone

    async def head(self, status: int, headers: Sequence[tuple[str, str]]) -> None:
        lines = [f"HTTP/1.1 {status} Whatever", *(f"{key}: {value}" for key, value in headers)]
        await self.write("\r\n".join([*lines, "", ""]).encode())

    async def write(self, data: bytes) -> None:
        """Write and let the other side read it by itself; raises when it has gone."""
        if self._gone.is_set():
            raise ConnectionResetError
        self._writer.write(data)
        await self._writer.drain()
        # Some turns of the loop, so that a client on it takes these bytes apart from the next.
        for _ in range(3):
            await asyncio.sleep(0)

    async def do(self, step: asyncio.Event | Do) -> bool:
        """Do a step that is no bytes; tell whether the script goes on."""
        if isinstance(step, asyncio.Event):
            await step.wait()
            return True
        if step is Do.RESET:
            linger = struct.pack("ii", 1, 0)
            connection: socket.socket = self._writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self._writer.transport.abort()
        self.hang_up()
        return False

    def hang_up(self) -> None:
        self.open = False

    async def whole(
        self,
        status: int,
        body: bytes = b"",
        content_type: str = "application/json; charset=utf-8",
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Answer with one whole message."""
        length = ("Content-Length", str(len(body)))
        await self.head(status, [("Content-Type", content_type), length, *headers])
        await self.write(body)

    async def json(self, status: int, value: Any) -> None:
        await self.whole(status, json.dumps(value).encode())

    async def error(self, status: int, text: str) -> None:
        await self.json(status, {"error": text})
