"""The faces that a load speaks to: the requests of each, and what its replies say."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec

from bench.ollama_wire import Ask


class Wrong(Exception):
    """A reply that is not the one that was asked for; the reason for a person."""


class Event(msgspec.Struct):
    """What one event of a stream says; the stream is whole if an event was the last."""

    text: str = ""
    is_last: bool = False


@dataclass(frozen=True)
class Face:
    """One way to ask: where streams and whole answers are, and how to read them."""

    stream_path: str
    piece_path: str
    read_event: Callable[[bytes], Event]
    """Raises Wrong, msgspec.DecodeError."""
    read_piece: Callable[[bytes], str]

    def make_request(
        self, model: str, ask: Ask, headers: Mapping[str, str], *, stream: bool
    ) -> bytes:
        """Return the whole HTTP request, the nonce of `ask` in it once."""
        body = json.dumps(
            {
                "model": model,
                "messages": [{"role": "user", "content": ask.prompt}],
                **({"stream": stream} if self.stream_path == self.piece_path else {}),
            }
        )
        lines = [
            f"POST {self.stream_path if stream else self.piece_path} HTTP/1.1",
            "Host: 127.0.0.1",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        return "\r\n".join([*lines, "", body]).encode()


# --- OpenAI's ----------------------------------------------------------------------------------


class _Said(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Said = msgspec.field(default_factory=_Said)
    message: _Said = msgspec.field(default_factory=_Said)
    finish_reason: str | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice] = []
    error: msgspec.Raw | None = None


_read_completion = msgspec.json.Decoder(_Completion).decode


def read_openai_event(data: bytes) -> Event:
    if data.strip() == b"[DONE]":
        return Event(is_last=True)
    chunk = _read_completion(data)
    if chunk.error is not None:
        raise Wrong(bytes(chunk.error).decode()[:200])
    text = "".join(choice.delta.content or "" for choice in chunk.choices)
    # Some end without [DONE].
    return Event(text, is_last=any(choice.finish_reason for choice in chunk.choices))


def read_openai_piece(body: bytes) -> str:
    return "".join(choice.message.content or "" for choice in _read_completion(body).choices)


# --- our own -----------------------------------------------------------------------------------


class _NativeData(msgspec.Struct):
    text: str = ""
    reason: str | None = None
    code: str | None = None
    message: str = ""


_read_native = msgspec.json.Decoder(_NativeData).decode


def read_native_event(data: bytes) -> Event:
    found = _read_native(data)
    if found.code is not None:
        raise Wrong(f"{found.code}: {found.message}")
    return Event(found.text, is_last=found.reason is not None)


def read_native_piece(body: bytes) -> str:
    return _read_native(body).text


OPENAI = Face("/v1/chat/completions", "/v1/chat/completions", read_openai_event, read_openai_piece)
NATIVE = Face("/api/v1/stream", "/api/v1/generate", read_native_event, read_native_piece)
