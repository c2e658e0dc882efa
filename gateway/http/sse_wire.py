"""Where the frames of a live stream go: a small port of what writes them, and our server's own."""

from collections.abc import Awaitable
from typing import Protocol

from starlette.types import Message, Send

from gateway.http.sse_events import start_message


class SseWire(Protocol):
    """One reply onto a connection that tells how full it is. Is told nothing while it is full, so
    that nothing has to wait: `start` once, then `write`, and `end` once, if the client stays."""

    def start(self, stream_id: str) -> None:
        """Write the head of the reply."""
        ...

    def write(self, frames: bytes) -> None:
        """Write some frames; never none."""
        ...

    def end(self, frames: bytes) -> None:
        """Write the last frames, of which there may be none, and the end of the reply."""
        ...


class AsgiWire:
    """By the ASGI `send` of our server, which suspends only while the connection is full."""

    __slots__ = ("_send",)

    def __init__(self, send: Send) -> None:
        self._send = send

    def start(self, stream_id: str) -> None:
        self._send_now(start_message(stream_id))

    def write(self, frames: bytes) -> None:
        self._send_now({"type": "http.response.body", "body": frames, "more_body": True})

    def end(self, frames: bytes) -> None:
        self._send_now({"type": "http.response.body", "body": frames, "more_body": False})

    def _send_now(self, message: Message) -> None:
        sending: Awaitable[None] = self._send(message)
        try:
            sending.__await__().__next__()
        except StopIteration:
            return
        raise RuntimeError("a server that was not full had a send wait")
