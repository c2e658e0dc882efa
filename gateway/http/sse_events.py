"""What is written of a live stream: the head, frames of each face's own form, and pings."""

from collections.abc import Sequence
from typing import Protocol

from starlette.types import Message

from gateway.core.events import Event
from gateway.problems import Problem

STREAM_ID = "X-Stream-Id"

FIRST_BYTES_WAIT_S = 1.0
"""How long the status may wait for the stream to show that it works; then 200 and pings go out."""

PING = b": ping\n\n"


class EventEncoder(Protocol):
    """One face's form of the events of one stream; knows what it has said already."""

    preamble: bytes
    begins_with_waiting: bool
    """Whether the reply begins with the first `Waiting`, or later failures still have a status."""

    def encode(self, events: Sequence[Event]) -> bytes:
        """Return the frames of `events`; empty when this face shows none of them."""
        ...

    def fail(self, problem: Problem, *, is_end: bool) -> bytes:
        """Return the frames of a failure, the last ones of this reading; `is_end` tells whether
        the stream itself ended with it."""
        ...


def stream_headers(stream_id: str) -> list[tuple[bytes, bytes]]:
    """Return the headers of the reply that are a stream's own."""
    return [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        (b"connection", b"keep-alive"),
        (b"x-accel-buffering", b"no"),
        (STREAM_ID.lower().encode(), stream_id.encode()),
    ]


def start_message(stream_id: str) -> Message:
    """Return the head of the reply."""
    return {"type": "http.response.start", "status": 200, "headers": stream_headers(stream_id)}
