"""The load on a gateway: keep-alive connections that ask, read and check every answer.

Raw protocols and ready bytes, so that the client takes little of its core.
"""

import asyncio
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import cast

import msgspec

from bench.faces import Face, Wrong
from bench.http1 import UNTIL_CLOSE, Reader
from bench.ollama_wire import Ask, with_nonce

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of no seconds: closing sends a reset."""


@dataclass(frozen=True)
class Route:
    """Where requests go: the server, the face, the model's name there, and the headers."""

    url: str
    face: Face
    model: str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Tally:
    """What came of a load. Times are seconds; a gap is between two tokens of one stream."""

    answers: int = 0
    tokens: int = 0
    lost: int = 0
    first_loss: str = ""
    latencies: list[float] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)

    def lose(self, reason: str) -> None:
        self.lost += 1
        self.first_loss = self.first_loss or reason


class Requests:
    """Requests of one kind. Each has a nonce of its own, so that no answer is taken for another."""

    def __init__(self, route: Route, ask: Ask, *, stream: bool, nonces: Iterator[int]) -> None:
        """`nonces` begin above 0, which marks the place of one."""
        self.route = route
        self.ask = ask
        self.stream = stream
        self._template = route.face.make_request(route.model, ask, route.headers, stream=stream)
        self._nonces = nonces

    def make(self) -> tuple[Ask, bytes]:
        nonce = f"{next(self._nonces):08x}"
        return self.ask._replace(nonce=nonce), with_nonce(self._template, nonce)


class Connection(asyncio.Protocol):
    """A connection that has one answer at a time on it; `on_first` is told of its first token,
    `on_end` of its end. What is wrong or missing goes to the tally, and the connection ends."""

    def __init__(
        self,
        requests: Requests,
        tally: Tally,
        on_end: Callable[["Connection"], None],
        on_first: Callable[["Connection"], None] | None = None,
    ) -> None:
        self._requests, self._tally = requests, tally
        self._on_end, self._on_first = on_end, on_first
        self._face = requests.route.face
        self.is_open = False
        self._answer: _Answer | None = None
        self._reader = Reader(
            self._take_head, self._take_body, self._take_end, without_length=UNTIL_CLOSE
        )

    @property
    def nonce(self) -> str:
        assert self._answer is not None
        return self._answer.ask.nonce

    def send(self) -> None:
        """Ask once more."""
        ask, request = self._requests.make()
        self._answer = _Answer(ask, time.perf_counter())
        self._transport.write(request)

    def reset(self) -> None:
        """End the connection by a TCP reset; nothing is told of it."""
        self._answer = None
        connection: socket.socket = self._transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are what asyncio.Transport is, but none by name.
        self._transport = cast(asyncio.Transport, transport)
        self.is_open = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        self._reader.close()
        self._lose(f"the connection ended: {exc or 'closed by the server'}")

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
        except (Wrong, msgspec.DecodeError, ValueError) as error:
            self._lose(str(error) or type(error).__name__)

    def _take_head(self, head: bytes) -> None:
        if self._answer is not None:
            self._answer.status = int(head[9:12])

    def _take_body(self, piece: bytes) -> None:
        answer = self._answer
        if answer is None:
            return
        if not self._requests.stream or answer.status != 200:
            answer.left += piece
            return
        lines = (answer.left + piece).split(b"\n")
        answer.left = lines.pop()
        before = answer.text
        for line in lines:
            if line.startswith(b"data:"):
                event = self._face.read_event(line[5:])
                answer.text += event.text
                answer.is_whole |= event.is_last
        if answer.text != before:
            self._note_tokens(answer, is_first=not before)

    def _note_tokens(self, answer: "_Answer", *, is_first: bool) -> None:
        now = time.perf_counter()
        if is_first:
            self._tally.firsts.append(now - answer.began)
        else:
            self._tally.gaps.append(now - answer.last)
        answer.last = now
        if is_first and self._on_first is not None:
            self._on_first(self)

    def _take_end(self) -> None:
        answer = self._answer
        if answer is None:
            return
        if answer.status != 200:
            raise Wrong(f"status {answer.status}: {answer.left[:200].decode(errors='replace')}")
        if not self._requests.stream:
            answer.text, answer.is_whole = self._face.read_piece(answer.left), True
        if not answer.is_whole:
            raise Wrong("the stream has no end")
        if answer.text != answer.ask.text:
            raise Wrong(f"the answer is {answer.text[:60]!r}, not {answer.ask.text[:60]!r}")
        self._answer = None
        self._tally.answers += 1
        self._tally.tokens += answer.ask.tokens
        self._tally.latencies.append(time.perf_counter() - answer.began)
        self._on_end(self)

    def _lose(self, reason: str) -> None:
        if self._answer is None:
            return
        self._answer = None
        self._tally.lose(reason)
        self._transport.abort()
        self.is_open = False
        self._on_end(self)


class _Answer:
    """What has come of the answer to `ask`; `left` is what is not a line yet."""

    __slots__ = ("ask", "began", "is_whole", "last", "left", "status", "text")

    def __init__(self, ask: Ask, began: float) -> None:
        self.ask, self.began, self.last = ask, began, began
        self.status, self.left, self.text, self.is_whole = 0, b"", "", False


async def connect(url: str, make: Callable[[], Connection]) -> Connection:
    """Return a connection to the server. Raises OSError."""
    host, _, port = url.removeprefix("http://").partition(":")
    _, connection = await asyncio.get_running_loop().create_connection(make, host, int(port))
    return connection
