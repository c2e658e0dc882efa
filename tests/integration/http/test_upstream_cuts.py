"""An upstream that is cut at every byte of its answer, seen by clients of the whole application.

Each reply has exactly one end in its face's form, each stream exactly one terminal record, and the
record counts what was sent.
"""

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest

from gateway.core.names import parse_ref
from gateway.core.ports import SessionStore
from gateway.core.sessions import SessionClosed, SessionOpened
from gateway.core.states import StreamEnd
from gateway.providers.ollama import OllamaService, OllamaTimeouts
from tests.integration.http.loop_turns import LoopTurns
from tests.integration.http.serving import Served, serving
from tests.integration.http.sse_reader import NATIVE, parse_frames
from tests.integration.ollama_peer import (
    CREATED,
    Do,
    OllamaPeer,
    chat_end,
    chat_line,
    line,
    raw,
    tool_call,
)

CHAT = [
    chat_line(thinking="Hmm, a gr"),
    chat_line(thinking="eeting."),
    chat_line("Gr\u00fc\u00dfe \U0001f999"),
    chat_line(" aus M\u00fcnchen"),
    chat_line(tool_calls=[tool_call("weather", {"city": "M\u00fcnchen", "days": [1, 2]})]),
    chat_line("!"),
    chat_end(),
]
_HEAD = {"model": "llama3.2", "created_at": CREATED}
GENERATE = [
    line(**_HEAD, response="", thinking="Hmm", done=False),
    *(line(**_HEAD, response=text, done=False) for text in ("Gr\u00fc\u00dfe", " \U0001f999", "!")),
    line(**_HEAD, response="", done=True, done_reason="stop", prompt_eval_count=7, eval_count=4),
]
REF = parse_ref("ollama", "llama3.2")
ANSWERS = {"chat": CHAT, "generate": GENERATE}

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n"


def chunked(lines: list[bytes]) -> bytes:
    body = b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in lines)
    return HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n"


def until_close(lines: list[bytes]) -> bytes:
    return HEAD + b"Connection: close\r\n\r\n" + b"".join(lines)


FRAMINGS = {"chunked": chunked, "until close": until_close}


class Reply:
    """What a client was told: its ends, and how many deltas."""

    def __init__(self, ends: list[str], deltas: int | None) -> None:
        self.ends = ends
        self.deltas = deltas


def _ask(verb: str) -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": "weather"}}]
    if verb == "generate":
        return {"model": "ollama/llama3.2", "prompt": "hi"}
    return {"model": "ollama/llama3.2", "messages": [{"role": "user", "content": "hi"}]} | {
        "tools": tools
    }


def _read_native(reply: httpx.Response) -> Reply:
    if reply.status_code != 200:
        return Reply([_error_of(reply)], 0)
    names = [frame.event for frame in parse_frames(reply.content) if frame.event]
    ends = [name for name in names if name in ("finished", "failed")]
    assert names[-1] in ends, "something follows the end"
    return Reply(ends, names.count("delta"))


def _read_openai(reply: httpx.Response) -> Reply:
    if reply.status_code != 200:
        return Reply([_error_of(reply)], 0)
    data = [frame.data for frame in parse_frames(reply.content) if frame.data]
    chunks = [json.loads(each) for each in data if each != "[DONE]"]
    failed = ["failed" for chunk in chunks if "error" in chunk]
    reasons = [
        "finished" for chunk in chunks for c in chunk.get("choices", ()) if c["finish_reason"]
    ]
    # A success is said by the reason and by [DONE]; a failure by the error alone.
    assert data.count("[DONE]") == len(reasons)
    assert data[-1] == "[DONE]" or "error" in chunks[-1], "something follows the end"
    return Reply(failed + reasons, None)


def _read_whole(reply: httpx.Response) -> Reply:
    return Reply(["finished" if reply.status_code == 200 else _error_of(reply)], None)


def _error_of(reply: httpx.Response) -> str:
    error = reply.json()["error"]
    assert reply.status_code >= 500 and error["code"] and error["message"]
    return "failed"


FACES: dict[str, tuple[str, dict[str, Any], Any]] = {
    "native stream": (NATIVE, {}, _read_native),
    "openai stream": ("/v1/chat/completions", {"stream": True}, _read_openai),
    "native whole": ("/api/v1/generate", {}, _read_whole),
    "openai whole": ("/v1/chat/completions", {}, _read_whole),
}


class Cutter:
    """Asks one served gateway again and again, whose upstream is cut elsewhere each time."""

    def __init__(self, served: Served, peer: OllamaPeer) -> None:
        self._served = served
        self._peer = peer
        self._closed: list[SessionClosed] = []
        self.count = 0
        self._watch_ends(served.gateway.sessions)

    def _watch_ends(self, store: SessionStore) -> None:
        write = store.write

        async def watched(opened: Sequence[SessionOpened], closed: Sequence[SessionClosed]) -> None:
            self._closed += closed
            await write(opened, closed)

        store.write = watched  # type: ignore[method-assign]

    async def cut(self, lines: list[bytes], message: bytes, at: int, end: Do, face: str) -> None:
        verb = "generate" if lines is GENERATE else "chat"
        self._peer.script("llama3.2", raw([message[:at], end]))
        # Else it would not be asked any more: it fails all the time.
        self._served.gateway.router.health.forgive(REF)
        path, fields, read = FACES[face]
        reply = await self._served.client.post(path, json=_ask(verb) | fields)
        told: Reply = read(reply)
        where = f"{verb}, {face}, cut at {at} of {len(message)} by {end}"
        assert len(told.ends) == 1, where
        closed = await self._record()
        is_whole = closed.end in (StreamEnd.STOP, StreamEnd.TOOL_CALLS)
        assert is_whole == (told.ends == ["finished"]), where
        assert (closed.error_code is None) == is_whole, where
        if is_whole:
            # The last line needs no end, so an answer may be whole from its last brace on.
            assert at > message.rindex(b"}"), where
            eval_count = 4 if verb == "generate" else 3
            assert (closed.usage.prompt_tokens, closed.usage.completion_tokens) == (7, eval_count)
        elif told.deltas is not None:
            assert closed.usage.completion_tokens == told.deltas, where

    async def _record(self) -> SessionClosed:
        """Return the one terminal record of the last stream."""
        self.count += 1
        session = await self._served.last_session()
        [closed] = self._closed
        self._closed.clear()
        assert closed.id == session.opened.id
        return closed


@asynccontextmanager
async def cutting(peer: OllamaPeer, patience_s: float) -> AsyncIterator[Cutter]:
    service = OllamaService(peer.url, OllamaTimeouts(control_s=5.0))
    peer.add_model("llama3.2", capabilities=["completion", "tools", "thinking"])
    try:
        async with serving(
            service, patience_s=patience_s, retry_sleep=no_sleep, stream_keep_s=0
        ) as served:
            yield Cutter(served, peer)
    finally:
        await service.aclose()


async def no_sleep(_: float) -> None:
    await anyio.lowlevel.checkpoint()


def offsets(message: bytes) -> Iterator[int]:
    yield from range(len(message) + 1)


@pytest.mark.parametrize("verb, framing", [("chat", "chunked"), ("generate", "until close")])
async def test_every_cut_of_an_answer_has_one_end_and_one_record(
    ollama_peer: OllamaPeer, quick_turns: LoopTurns, verb: str, framing: str
) -> None:
    """F3: each cut is seen through one of the faces, in turn."""
    lines = ANSWERS[verb]
    message = FRAMINGS[framing](lines)
    # OpenAI's face has no continuing of a prompt with a chat's path.
    faces = [face for face in FACES if verb == "chat" or face.startswith("native")]
    async with cutting(ollama_peer, patience_s=110) as cutter:
        for at in offsets(message):
            end = Do.RESET if at % 5 == 0 else Do.CLOSE
            await cutter.cut(lines, message, at, end, faces[at % len(faces)])
    assert cutter.count == len(message) + 1


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("end", [Do.CLOSE, Do.RESET])
@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("verb", ANSWERS)
async def test_every_cut_has_one_end_and_one_record_in_every_face(
    ollama_peer: OllamaPeer, verb: str, framing: str, end: Do
) -> None:
    """F3"""
    lines = ANSWERS[verb]
    message = FRAMINGS[framing](lines)
    faces = [face for face in FACES if verb == "chat" or face.startswith("native")]
    async with cutting(ollama_peer, patience_s=3000) as cutter:
        for at in offsets(message):
            for face in faces:
                await cutter.cut(lines, message, at, end, face)
