"""Reads event streams by the letter of the WHATWG specification, and keeps what clients skip."""

import json
import re
from typing import Any

import msgspec

NATIVE = "/api/v1/stream"
HELLO = {"model": "scripted/echo", "messages": [{"role": "user", "content": "hello"}]}


class Frame(msgspec.Struct):
    id: str | None = None
    event: str | None = None
    data: str | None = None
    retry: str | None = None
    comment: str | None = None

    @property
    def json(self) -> Any:
        assert self.data is not None
        return json.loads(self.data)


def parse_frames(body: bytes) -> list[Frame]:
    """Return every block of the stream, comments and retry blocks too."""
    assert body.endswith(b"\n\n"), "the last block is not finished"
    return [_parse_block(block) for block in body.split(b"\n\n") if block]


def _parse_block(block: bytes) -> Frame:
    frame = Frame()
    for line in re.split(rb"\r\n|\r|\n", block):
        name, _, value = line.decode().partition(":")
        field = name or "comment"
        assert getattr(frame, field) is None, f"{field} twice in one block"
        setattr(frame, field, value.removeprefix(" "))
    return frame


def named(frames: list[Frame]) -> list[str]:
    return [frame.event for frame in frames if frame.event is not None]
