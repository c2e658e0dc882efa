"""A mock Ollama that is no bottleneck: it writes ready bytes on raw connections.

Prompts say what they want; see `Ask`. By itself, with its port on stdout:

    python -m bench.ollama_mock
"""

import asyncio
import socket
import sys
import time
from typing import cast

import msgspec
import uvloop

from bench import machine
from bench.http1 import Reader
from bench.ollama_wire import CHAT, OPENAI, OTHERS, Ask, Wire, json_reply, with_nonce

BACKLOG = 4096
ACCEPTS_A_TURN = 64
"""uvloop accepts one connection in a turn for each handle that listens: too few under load."""
WIRES = {"/api/chat": CHAT, "/v1/chat/completions": OPENAI}
NOT_FOUND = json_reply({"error": "404 page not found"}, "404 Not Found")


class _Part(msgspec.Struct):
    text: str = ""


class _Message(msgspec.Struct):
    content: str | list[_Part] = ""

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class _StreamOptions(msgspec.Struct):
    include_usage: bool = False


class _Body(msgspec.Struct):
    messages: list[_Message]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None


_read_body = msgspec.json.Decoder(_Body).decode


class OllamaMock:
    """The server; it runs on the running loop until `close`."""

    def __init__(self) -> None:
        self.connections = 0
        """That are open now."""
        self._cuts: dict[str, asyncio.Future[float]] = {}
        self._servers: list[asyncio.Server] = []

    async def start(self) -> str:
        """Listen on loopback; return the URL."""
        listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
        for handle in [listener, *(listener.dup() for _ in range(ACCEPTS_A_TURN - 1))]:
            server = await asyncio.get_running_loop().create_server(
                lambda: _Connection(self), sock=handle, backlog=BACKLOG
            )
            self._servers.append(server)
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    def expect_cut(self, nonce: str) -> asyncio.Future[float]:
        """Return what will tell the `perf_counter` at which that answer's connection broke."""
        return self._cuts.setdefault(nonce, asyncio.get_running_loop().create_future())

    def tell_cut(self, nonce: str) -> None:
        cut = self._cuts.pop(nonce, None)
        if cut is not None and not cut.done():
            cut.set_result(time.perf_counter())

    def close(self) -> None:
        for server in self._servers:
            server.close()


class _Connection(asyncio.Protocol):
    def __init__(self, mock: OllamaMock) -> None:
        self._mock = mock
        self._reader = Reader(self._on_head, self._on_body, self._on_end, without_length=0)
        self._path = ""
        self._body = b""
        self._speaks: Ask | None = None
        self._next: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are what asyncio.Transport is, but none by name.
        self._transport = cast(asyncio.Transport, transport)
        self._loop = asyncio.get_running_loop()
        self._mock.connections += 1

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._mock.connections -= 1
        if self._next is not None:
            self._next.cancel()
        if self._speaks is not None:
            self._mock.tell_cut(self._speaks.nonce)

    def _on_head(self, head: bytes) -> None:
        self._path = head.split(b" ", 2)[1].partition(b"?")[0].decode()
        self._body = b""

    def _on_body(self, piece: bytes) -> None:
        self._body += piece

    def _on_end(self) -> None:
        wire = WIRES.get(self._path)
        if wire is None:
            self._transport.write(OTHERS.get(self._path, NOT_FOUND))
            return
        body = _read_body(self._body)
        ask = Ask.read(body.messages[-1].text)
        # Ollama's own API streams unless it is told not to, OpenAI's only if it is told to.
        streams = body.stream if body.stream is not None else wire is CHAT
        if not streams:
            self._transport.write(with_nonce(wire.piece(ask.tokens), ask.nonce))
            return
        usage = body.stream_options is not None and body.stream_options.include_usage
        self._stream(wire, ask, usage)

    def _stream(self, wire: Wire, ask: Ask, usage: bool) -> None:
        first = wire.head + with_nonce(wire.first, ask.nonce)
        end = wire.end(ask.tokens, usage)
        if not ask.interval_ms:
            self._transport.write(first + wire.token * (ask.tokens - 1) + end)
            return
        self._speaks = ask
        self._transport.write(first)
        self._wait(ask.interval_ms / 1000, wire.token, end, ask.tokens - 1)

    def _wait(self, interval_s: float, token: bytes, end: bytes, left: int) -> None:
        self._next = self._loop.call_later(interval_s, self._go_on, interval_s, token, end, left)

    def _go_on(self, interval_s: float, token: bytes, end: bytes, left: int) -> None:
        if not left:
            self._speaks = self._next = None
            self._transport.write(end)
            return
        self._transport.write(token)
        self._wait(interval_s, token, end, left - 1)


async def _serve() -> None:
    mock = OllamaMock()
    sys.stdout.write(f"{await mock.start()}\n")
    sys.stdout.flush()
    await asyncio.get_running_loop().create_future()


def main() -> None:
    """Serve on the second core, where there is one, until killed."""
    machine.pin(1)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve())


if __name__ == "__main__":
    main()
