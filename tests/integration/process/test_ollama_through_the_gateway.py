"""A served gateway in front of a scripted Ollama server: listings, both faces, faults, leaving."""

import asyncio
import base64
import io
from collections.abc import Callable
from typing import Any

import anyio
import anyio.to_thread
import httpx
import openai
import pytest
from PIL import Image

from tests.integration.ollama_peer import Do, OllamaPeer, answer, chat_line, chunks
from tests.integration.process.conftest import GatewayProcess, chat

Serve = Callable[..., GatewayProcess]
Rows = Callable[[str], list[tuple[Any, ...]]]


ALONE = "ollama"
"""The provider of a gateway that is to do without a model of its own, which is sooner there."""


async def served(serve: Serve, peer: OllamaPeer, **extra: str) -> GatewayProcess:
    # The peer lives on this loop, so the start must not block it.
    return await anyio.to_thread.run_sync(lambda: serve(OLLAMA_HOST=peer.url, **extra))


def client_of(gateway: GatewayProcess) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=gateway.url, timeout=30, trust_env=False)


async def models(client: httpx.AsyncClient) -> tuple[set[str], list[dict[str, str]]]:
    listing = (await client.get("/api/v1/models")).json()
    return {model["id"] for model in listing["models"]}, listing["provider_errors"]


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), "red").save(buffer, "PNG")
    return buffer.getvalue()


async def test_its_models_appear_and_answer_through_both_faces(
    serve: Serve, ollama_peer: OllamaPeer, rows: Rows
) -> None:
    ollama_peer.add_model("llama3.2", answer="Hello from Ollama, 🙂")
    ollama_peer.load("llama3.2")
    gateway = await served(serve, ollama_peer)
    async with client_of(gateway) as client:
        names, faults = await models(client)
        assert names == {"huggingface/demo", "huggingface/smol", "ollama/llama3.2:latest"}
        assert faults == []
        reply = await client.post("/api/v1/generate", json=chat("ollama/llama3.2", "hi"))
        assert reply.json()["text"] == "Hello from Ollama, 🙂"
        assert reply.json()["model"] == "ollama/llama3.2:latest"
        query = (
            '{ availableModels(filter: {providers: ["ollama"]}) { models { name state '
            "sizeBytes capabilities } providerErrors { code } } }"
        )
        shown = (await client.post("/graphql", json={"query": query})).json()["data"]
    assert shown["availableModels"] == {
        "models": [
            {
                "name": "llama3.2:latest",
                "state": "LOADED",
                "sizeBytes": 2_019_393_189,
                "capabilities": ["CHAT", "COMPLETION", "STRUCTURED"],
            }
        ],
        "providerErrors": [],
    }
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="x") as client:
        stream = await client.chat.completions.create(
            model="ollama/llama3.2", messages=[{"role": "user", "content": "hi"}], stream=True
        )
        text = "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])
    assert text == "Hello from Ollama, 🙂"
    gateway.close()
    assert (
        rows("SELECT provider, model, end_reason FROM stream_sessions")
        == [("ollama", "llama3.2:latest", "stop")] * 2
    )


async def test_images_reach_it_from_either_shape_and_only_if_it_sees(
    serve: Serve, ollama_peer: OllamaPeer
) -> None:
    ollama_peer.add_model("llava", capabilities=["completion", "vision"])
    ollama_peer.add_model("blind")
    gateway = await served(serve, ollama_peer, GATEWAY_PROVIDERS=ALONE)
    encoded = base64.b64encode(png()).decode()
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}}
    shapes: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "text", "text": "what?"}, part]},
        {"role": "user", "content": "what?", "images": [encoded]},
    ]
    async with client_of(gateway) as client:
        for message in shapes:
            body = {"model": "ollama/llava", "messages": [message]}
            assert (await client.post("/api/v1/generate", json=body)).status_code == 200
            refused = await client.post("/api/v1/generate", json=body | {"model": "ollama/blind"})
            assert refused.status_code == 400
            assert "images" in refused.json()["error"]["message"]
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="x") as client:
        await client.chat.completions.create(model="ollama/llava", messages=[shapes[0]])  # type: ignore[list-item]
    seen = [request.body["messages"][-1] for request in ollama_peer.seen("/api/chat")]
    assert [message["images"] for message in seen] == [[encoded]] * 3
    assert {message["content"] for message in seen} == {"what?"}


async def test_a_dead_server_is_named_in_listings_and_a_request_gets_a_typed_error(
    serve: Serve, ollama_peer: OllamaPeer
) -> None:
    ollama_peer.add_model("llama3.2")
    gateway = await served(serve, ollama_peer)
    await ollama_peer.stop()
    async with client_of(gateway) as client:
        await asyncio.sleep(0)
        reply = await client.post("/api/v1/generate", json=chat("ollama/llama3.2", "hi"))
        assert reply.status_code == 503
        error = reply.json()["error"]
        assert (error["code"], error["retryable"]) == ("provider_unavailable", True)
        assert "retry-after" in reply.headers
        while not (await models(client))[1]:
            await anyio.sleep(0.05)  # the listing of before is reused for a second
        names, [fault] = await models(client)
        assert names == {"huggingface/demo", "huggingface/smol"}
        assert (fault["provider"], fault["code"]) == ("ollama", "provider_unavailable")
        assert ollama_peer.url in fault["message"]
        await ollama_peer.restart()
        while (await models(client))[1]:
            await anyio.sleep(0.05)
        again = await client.post("/api/v1/generate", json=chat("ollama/llama3.2", "hi"))
        assert again.status_code == 200


RUBBISH = {
    "html": answer(200, b"<html>nginx</html>", "text/html"),
    "not json": answer(200, b"}{"),
    "wrong shape": answer(200, b'{"models": 7}'),
    "error": answer(500, b'{"error": "disk on fire"}'),
}


async def test_a_server_that_talks_rubbish_is_named_and_the_others_are_listed(
    serve: Serve, ollama_peer: OllamaPeer
) -> None:
    ollama_peer.script_route("/api/tags", RUBBISH["html"])
    gateway = await served(serve, ollama_peer)
    async with client_of(gateway) as client:
        for rubbish in RUBBISH.values():
            ollama_peer.script_route("/api/tags", rubbish)
            ollama_peer.script("x", rubbish)
            asked = len(ollama_peer.seen("/api/tags"))
            await asyncio.sleep(1.1)  # the listing of before is reused for a second
            names, [fault] = await models(client)
            assert names == {"huggingface/demo", "huggingface/smol"}
            assert fault["provider"] == "ollama"
            assert len(ollama_peer.seen("/api/tags")) > asked
            reply = await client.post("/api/v1/generate", json=chat("ollama/x", "hi"))
            assert reply.status_code in (500, 502)
            assert reply.json()["error"]["message"]


async def test_a_hanging_server_holds_up_neither_a_listing_nor_other_models(
    serve: Serve, ollama_peer: OllamaPeer
) -> None:
    never = asyncio.Event()
    ollama_peer.script_route("/api/tags", chunks([never]))
    ollama_peer.script_route("/api/ps", chunks([never]))
    gateway = await served(
        serve,
        ollama_peer,
        GATEWAY_CATALOG_TIMEOUT_S="3",
        GATEWAY_OLLAMA_CONTROL_TIMEOUT_S="2",
    )
    async with client_of(gateway) as client:
        names, [fault] = await models(client)
        assert names == {"huggingface/demo", "huggingface/smol"}
        assert fault["code"] == "provider_timeout"
        reply = await client.post(
            "/api/v1/generate", json=chat("huggingface/smol", "hi", max_tokens=1)
        )
        assert reply.status_code == 200
        assert reply.json()["timings"]["queue_ms"] < 2000


async def test_a_server_that_hangs_in_an_answer_times_out(
    serve: Serve, ollama_peer: OllamaPeer
) -> None:
    ollama_peer.add_model("slow")
    ollama_peer.script("slow", chunks([chat_line("a"), asyncio.Event()]))
    gateway = await served(
        serve, ollama_peer, GATEWAY_OLLAMA_IDLE_TIMEOUT_S="0.5", GATEWAY_PROVIDERS=ALONE
    )
    async with client_of(gateway) as client:
        reply = await client.post("/api/v1/stream", json=chat("ollama/slow", "hi"))
        assert reply.status_code == 200
        assert "event: failed" in reply.text
        assert "provider_timeout" in reply.text


@pytest.mark.parametrize("face", ["/api/v1/stream", "/api/v1/generate", "/v1/chat/completions"])
async def test_leaving_closes_the_request_upstream_and_the_record_says_cancelled(
    serve: Serve, ollama_peer: OllamaPeer, rows: Rows, face: str
) -> None:
    ollama_peer.add_model("slow")
    ollama_peer.script("slow", chunks([chat_line("a"), chat_line("b"), asyncio.Event()]))
    gateway = await served(serve, ollama_peer, GATEWAY_PROVIDERS=ALONE)
    async with client_of(gateway) as client:
        request = client.build_request("POST", face, json=chat("ollama/slow", "hi"))
        sending = asyncio.ensure_future(client.send(request, stream=True))
        seen = await ollama_peer.request(path="/api/chat")
        if face.endswith("stream"):
            reply = await sending
            async for line in reply.aiter_lines():
                if '"text":"b"' in line:
                    break
            await reply.aclose()
        else:
            sending.cancel()
        await seen.until_closed()
    gateway.close()
    assert rows("SELECT end_reason, provider FROM stream_sessions") == [("cancelled", "ollama")]


async def test_kill_9_of_the_server_in_mid_stream_is_one_failed_event(
    serve: Serve, ollama_peer: OllamaPeer, rows: Rows
) -> None:
    ollama_peer.add_model("dies")
    read = asyncio.Event()
    steps = [chat_line("a"), chat_line("b"), read, Do.RESET]
    ollama_peer.script("dies", chunks(steps))
    gateway = await served(serve, ollama_peer, GATEWAY_PROVIDERS=ALONE)
    text = ""
    async with (
        client_of(gateway) as client,
        client.stream("POST", "/api/v1/stream", json=chat("ollama/dies", "hi")) as reply,
    ):
        async for piece in reply.aiter_text():
            text += piece
            if '"text":"b"' in text:
                read.set()
    assert text.count("event: failed") == 1
    assert "event: finished" not in text
    gateway.close()
    [(end, tokens)] = rows("SELECT end_reason, completion_tokens FROM stream_sessions")
    assert (end, tokens) == ("error", 2)
