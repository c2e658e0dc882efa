"""Answers that go on with another model, seen by clients of the whole application."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx2
import pytest
from langchain_openai import ChatOpenAI
from openai import AsyncOpenAI
from pydantic import SecretStr

from gateway.core.errors import EngineFailed, IncompleteStream
from gateway.core.events import Finished, Started, TextDelta, Usage
from gateway.core.names import ModelRef, parse_ref
from gateway.core.states import StreamEnd
from gateway.providers.ollama import OllamaService, OllamaTimeouts
from tests.integration.clients import node
from tests.integration.http.serving import Served, serving
from tests.integration.http.sse_reader import NATIVE, named, parse_frames
from tests.integration.ollama_peer import Do, OllamaPeer, Seen, chat_end, chat_line, raw
from tests.scripted_provider import Step, TurnProvider

ANSWER = "Grüße \U0001f999 aus München, und noch ein paar Worte mehr."
FIRST, SECOND = "ollama/llama3.2:latest", "ollama/qwen3:latest"
ASKED = {"model": "any", "messages": [{"role": "user", "content": "hi"}]}
PAIR = {"candidates": [FIRST, SECOND], "continue_on_failure": True}
MODEL = "any"
A, B = ModelRef("a", "echo"), ModelRef("b", "echo")


def pieces(text: str) -> list[str]:
    head, *tail = text.split(" ")
    return [head, *(f" {word}" for word in tail)]


def message_of(texts: list[str]) -> bytes:
    lines = [*(chat_line(text) for text in texts), chat_end()]
    body = b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in lines)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n"
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n"


@asynccontextmanager
async def two_models(peer: OllamaPeer, **settings: Any) -> AsyncIterator[Served]:
    """A gateway before a peer with two models that answer alike; the first may be scripted."""
    service = OllamaService(peer.url, OllamaTimeouts(control_s=5.0))
    peer.add_model("llama3.2")
    peer.add_model("qwen3", answer=ANSWER)
    try:
        async with serving(
            service, patience_s=100, virtual_models={"any": PAIR}, **settings
        ) as served:
            yield served
    finally:
        await service.aclose()


def text_of(face: str, reply: httpx2.Response | Any) -> str:
    if face == "whole":
        return str(reply.json()["text"])
    frames = parse_frames(reply.content)
    if face == "native":
        names = named(frames)
        assert names.count("finished") == 1 and names[-1] == "finished"
        return "".join(f.json.get("text", "") for f in frames if f.event == "delta")
    chunks = [json.loads(f.data) for f in frames if f.data not in (None, "[DONE]")]
    assert not [chunk for chunk in chunks if "error" in chunk]
    deltas = [c["delta"] for chunk in chunks for c in chunk["choices"]]
    return "".join(delta.get("content", "") for delta in deltas)


FACES = {
    "native": (NATIVE, {}),
    "openai": ("/v1/chat/completions", {"stream": True}),
    "whole": ("/api/v1/generate", {}),
}


@pytest.mark.parametrize("end", [Do.RESET, Do.CLOSE])
@pytest.mark.parametrize("face", FACES)
async def test_cut_at_every_byte_the_answer_is_whole_and_has_one_end(
    ollama_peer: OllamaPeer, face: str, end: Do
) -> None:
    """F3: the next model goes on at the byte, before the first word it just answers."""
    message = message_of(pieces(ANSWER))
    path, fields = FACES[face]
    # Each chunk's frame is cut in some place; the text in all of them.
    places = range(0, len(message), 3)
    async with two_models(ollama_peer) as served:
        for at in places:
            ollama_peer.script("llama3.2", raw([message[:at], end]))
            served.gateway.router.health.forgive(parse_ref("ollama", "llama3.2"))
            reply = await served.client.post(path, json=ASKED | fields)
            where = f"cut at {at} of {len(message)}"
            assert reply.status_code == 200, where
            assert text_of(face, reply) == ANSWER, where
            session = await served.last_session()
            closed = session.closed
            assert closed is not None and closed.end is StreamEnd.STOP, where
            has_begun = b'"done":false}\n' in message[:at]
            # The last line is whole somewhere between its last brace and the end of its frame.
            if at <= message.rindex(b"}"):
                assert closed.served_by == ((FIRST, SECOND) if has_begun else ()), where


async def test_a_route_that_is_made_at_run_time_has_answers_go_on_too(
    ollama_peer: OllamaPeer,
) -> None:
    ollama_peer.script("llama3.2", raw([message_of(pieces(ANSWER))[:300], Do.RESET]))
    async with two_models(ollama_peer) as served:
        route = {**PAIR, "max_continuations": 1}
        made = await served.client.put("/api/v1/routes/mine", json=route)
        assert made.status_code == 201, made.text
        shown = (await served.client.get("/api/v1/routes/mine")).json()
        assert (shown["continue_on_failure"], shown["max_continuations"]) == (True, 1)
        reply = await served.client.post("/api/v1/generate", json={**ASKED, "model": "mine"})
        alias = {"model": FIRST, "continue_on_failure": True}
        refused = await served.client.put("/api/v1/routes/other", json=alias)
    assert reply.json()["text"] == ANSWER
    assert refused.status_code == 400


async def test_the_next_is_given_the_words_and_the_usage_counts_both(
    ollama_peer: OllamaPeer,
) -> None:
    message = message_of(pieces(ANSWER))
    at = message.index(b"aus")
    at = message.index(b"\n", at) + 1
    ollama_peer.script("llama3.2", raw([message[:at], Do.RESET]))
    async with two_models(ollama_peer) as served:
        reply = await served.client.post(NATIVE, json=ASKED | {"options": {"max_tokens": 30}})
        session = await served.last_session()
        metrics = (await served.client.get("/metrics")).text
    frames = parse_frames(reply.content)
    assert named(frames)[:6] == ["started", *["delta"] * 3, "switched", "delta"]
    [switched] = [frame.json for frame in frames if frame.event == "switched"]
    assert switched == {"from": FIRST, "to": SECOND, "reason": "incomplete_stream"}
    second: Seen = ollama_peer.seen("/api/chat")[-1]
    assert second.body["messages"] == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "Grüße \U0001f999 aus"},
    ]
    assert second.body["options"]["num_predict"] == 27
    rest = len(pieces(ANSWER)) - 3
    # Of the first model's prompt nothing was told before it broke.
    assert frames[-1].json["usage"] == {"prompt_tokens": 14, "completion_tokens": 3 + rest}
    assert session.closed is not None
    assert session.closed.usage == Usage(14, 3 + rest)
    assert (session.opened.provider, session.opened.model) == ("ollama", "qwen3:latest")
    assert 'gateway_continuations_total{source="ollama",target="ollama"} 1' in metrics


async def test_an_idle_stream_is_left_for_the_next(ollama_peer: OllamaPeer) -> None:
    """F2, F5"""
    wait = anyio.Event()
    message = message_of(pieces(ANSWER))
    at = message.index(b"\n", message.index(b"done")) + 1

    async def hang(exchange: Any) -> None:
        await exchange.write(message[:at])
        await wait.wait()

    ollama_peer.script("llama3.2", hang)
    service = OllamaService(ollama_peer.url, OllamaTimeouts(control_s=5.0, idle_s=0.2))
    ollama_peer.add_model("llama3.2")
    ollama_peer.add_model("qwen3", answer=ANSWER)
    async with serving(service, virtual_models={"any": PAIR}) as served:
        reply = await served.client.post("/api/v1/generate", json=ASKED)
        wait.set()
    await service.aclose()
    assert reply.json()["text"] == ANSWER
    assert reply.json()["switched"] == [{"from": FIRST, "to": SECOND, "reason": "provider_timeout"}]
    assert reply.json()["model"] == SECOND


def broken(ref: ModelRef, *texts: str) -> list[Step]:
    deltas = [TextDelta(text) for text in texts]
    return [Started(ref, prompt_tokens=2), *deltas, EngineFailed("It died.")]


def whole(ref: ModelRef, *texts: str) -> list[Step]:
    usage = Usage(2, len(texts))
    return [Started(ref, prompt_tokens=2), *map(TextDelta, texts), Finished("stop", usage)]


@asynccontextmanager
async def chatting(**settings: Any) -> AsyncIterator[Served]:
    """A gateway whose first model says "hel" and breaks, and whose second goes on with "lo"."""
    first = TurnProvider([broken(A, "h", "el")], name="a")
    second = TurnProvider([whole(B, "l", "o")], name="b")
    rule = ["a/echo", "b/echo"]
    async with serving(first, second, virtual_models={"any": rule}, **settings) as served:
        yield served


BODY = {**ASKED, "continue_on_failure": True}
HELLO: list[Any] = [{"role": "user", "content": "hello"}]


async def test_openai_python_sees_one_answer_and_may_see_the_switch() -> None:
    async with (
        chatting() as served,
        AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client,
    ):
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=HELLO,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"continue_on_failure": True},
        )
        chunks = [chunk async for chunk in stream]
        answer = await client.chat.completions.create(
            model=MODEL, messages=HELLO, extra_body={"continue_on_failure": True}
        )
        plain = await client.completions.create(
            model=MODEL, prompt="hello", stream=True, extra_body={"continue_on_failure": True}
        )
        texts = [chunk.choices[0].text async for chunk in plain]
    said = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(said) == answer.choices[0].message.content == "".join(texts) == "hello"
    told = {"from": "a/echo", "to": "b/echo", "reason": "engine_failed"}
    extras = [chunk.model_extra["switched"] for chunk in chunks if chunk.model_extra]
    assert extras == [told]
    assert answer.model_extra == {"switched": [told]}
    assert [chunk.model for chunk in chunks if chunk.model == "b/echo"]
    assert chunks[-1].usage is not None and chunks[-1].usage.total_tokens == 8


async def test_langchain_sees_one_answer() -> None:
    async with chatting() as served, httpx2.AsyncClient() as client:
        chat = ChatOpenAI(
            model=MODEL,
            base_url=f"{served.url}/v1",
            api_key=SecretStr("none"),
            max_retries=0,
            http_async_client=client,
            extra_body={"continue_on_failure": True},
        )
        chunks = [chunk async for chunk in chat.astream("hello")]
    assert "".join(str(chunk.content) for chunk in chunks) == "hello"


@pytest.mark.usefixtures("node_modules")
async def test_openai_node_sees_one_answer() -> None:
    async with chatting() as served:
        printed = await anyio.to_thread.run_sync(
            node.run_script, "openai-switched.mjs", served.url, MODEL
        )
    seen = json.loads(printed)
    assert (seen["text"], seen["reason"]) == ("hello", "stop")
    assert seen["switched"] == {"from": "a/echo", "to": "b/echo", "reason": "engine_failed"}


async def test_a_reader_that_was_cut_off_reads_on_over_the_switch() -> None:
    async with chatting(stream_keep_s=60) as served:
        first = await served.client.post(NATIVE, json=BODY)
        path = f"/api/v1/streams/{first.headers['x-stream-id']}"
        last = len(named(parse_frames(first.content)))
        for after in range(last):
            headers = {"last-event-id": str(after)} if after else {}
            again = await served.client.get(path, headers=headers)
            tail = first.content.split(b"\n\n")[1 + after :]
            assert again.content.split(b"\n\n")[1:] == tail
        done = await served.client.get(path, headers={"last-event-id": str(last)})
    assert named(parse_frames(first.content)) == [
        *("started", "delta", "delta", "switched", "delta", "delta", "finished")
    ]
    assert done.status_code == 204


async def test_a_stream_that_breaks_for_good_says_so_once_and_is_counted_whole() -> None:
    first = TurnProvider([broken(A, "x")], name="a")
    second = TurnProvider([[*broken(B, "y")[:-1], IncompleteStream("b", "Cut.")]], name="b")
    rule = ["a/echo", "b/echo"]
    async with serving(first, second, virtual_models={"any": rule}, max_continuations=1) as served:
        reply = await served.client.post(NATIVE, json=BODY)
        session = await served.last_session()
    names = named(parse_frames(reply.content))
    assert names == ["started", "delta", "switched", "delta", "failed"]
    closed = session.closed
    assert closed is not None and closed.error_code == "incomplete_stream"
    assert (closed.usage, closed.served_by) == (Usage(4, 2), ("a/echo", "b/echo"))


async def test_a_prompt_that_was_cut_is_flagged_on_every_face(ollama_peer: OllamaPeer) -> None:
    ollama_peer.default_context = 40
    asked = {"model": SECOND, "messages": [{"role": "user", "content": "word " * 99}]}
    async with two_models(ollama_peer) as served:
        refused = await served.client.post("/v1/chat/completions", json=asked)
        asked["truncate"] = True
        native = await served.client.post(NATIVE, json=asked)
        generated = await served.client.post("/api/v1/generate", json=asked)
        openai = await served.client.post("/v1/chat/completions", json=asked)
        chunks = await served.client.post("/v1/chat/completions", json=asked | {"stream": True})
        fits = await served.client.post("/api/v1/generate", json=ASKED | {"truncate": True})
    assert (refused.status_code, refused.json()["error"]["code"]) == (
        400,
        "context_length_exceeded",
    )
    assert parse_frames(native.content)[-1].json["truncated"] is True
    assert generated.json()["truncated"] is True
    assert openai.json()["truncated"] is True
    assert '"truncated":true' in chunks.text
    assert "truncated" not in fits.json()
