"""One HTTP request of the peer and its answer, exact to the byte. Knows nothing of the Hub."""

import asyncio
import json
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

Headers = Sequence[tuple[str, str]]


@dataclass
class Seen:
    """One request as it arrived; `host` is `hub` or `cdn`.

    `closed` is set when the client goes before the answer's end, `answered` at the answer's end.
    """

    host: str
    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    sent_bytes: int = 0
    status: int = 0
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    answered: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def path(self) -> str:
        """The path as it was meant: percent escapes are decoded."""
        return unquote(urlsplit(self.target).path)

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.target).query, keep_blank_values=True))

    @property
    def token(self) -> str | None:
        """The token that was sent, if any."""
        kind, _, token = self.headers.get("authorization", "").partition(" ")
        return token if kind == "Bearer" else None


class Exchange:
    """One request while it is being answered."""

    def __init__(self, seen: Seen, writer: asyncio.StreamWriter) -> None:
        self.seen = seen
        self.open = True
        self._writer = writer

    async def reply(self, status: int, body: bytes = b"", headers: Headers = ()) -> None:
        """Answer with one whole message; a HEAD gets no body."""
        await self.head(status, [("Content-Length", str(len(body))), *headers])
        if self.seen.method != "HEAD":
            await self.write(body)

    async def json(self, status: int, value: Any, headers: Headers = ()) -> None:
        typed = [("Content-Type", "application/json; charset=utf-8"), *headers]
        await self.reply(status, json.dumps(value).encode(), typed)

    async def head(self, status: int, headers: Headers) -> None:
        self.seen.status = status
        lines = [f"HTTP/1.1 {status} Whatever", *(f"{key}: {value}" for key, value in headers)]
        self._writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        await self._writer.drain()

    async def write(self, data: bytes) -> None:
        """Write a part of the body; raises ConnectionError when the client has gone."""
        self._writer.write(data)
        self.seen.sent_bytes += len(data)
        await self._writer.drain()

    def finish(self) -> None:
        """End the connection in order, once all that was written has been sent."""
        self.open = False

    def reset(self) -> None:
        """Cut the connection as a dying server does; what was not sent yet is lost."""
        self.open = False
        linger = struct.pack("ii", 1, 0)
        connection: socket.socket = self._writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._writer.transport.abort()
