"""An OpenAI-compatible server behind the gateway's faces, asked by the real client."""

import asyncio
import json

import openai
import pytest

from gateway.providers.openai import OpenAIService
from gateway.servers import OpenAIServer
from tests.integration.http.serving import Served, serving
from tests.integration.ollama_peer import answer
from tests.integration.openai_peer import (
    CHAT,
    DONE,
    MODELS,
    OpenAIPeer,
    call_part,
    delta,
    stream,
    usage,
)

KEY = "sk-very-secret"
ASK = {"model": "lab/m", "messages": [{"role": "user", "content": "hi"}]}


def lab(*urls: str) -> OpenAIService:
    return OpenAIService("lab", OpenAIServer(urls=urls, key=KEY, control_timeout_s=15))


def client_of(served: Served) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="x", max_retries=0)


async def test_chats_completions_and_embeddings_go_through() -> None:
    async with OpenAIPeer(key=KEY) as peer, serving(lab(peer.base_url)) as served:
        async with client_of(served) as client:
            assert [model.id async for model in client.models.list()] == ["lab/m"]
            whole = await client.chat.completions.create(**ASK)
            assert whole.choices[0].message.content == "You said: hi"
            assert whole.usage is not None
            assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (11, 3)
            plain = await client.completions.create(model="lab/m", prompt="Once")
            assert (plain.choices[0].text, plain.choices[0].finish_reason) == ("Once...", "length")
            found = await client.embeddings.create(model="lab/m", input=["ab", "c"])
            assert [item.embedding[0] for item in found.data] == [2.0, 1.0]
        session = await served.last_session()
        assert (session.opened.provider, session.opened.model) == ("lab", "m")


async def test_reasoning_and_tool_calls_are_streamed_in_the_clients_form() -> None:
    steps = [
        delta("", role="assistant"),
        delta(reasoning="hm"),
        delta("Look:"),
        delta(tool_calls=[call_part(0, id="a", name="f", arguments='{"x":')]),
        delta(tool_calls=[call_part(0, arguments="1}")]),
        delta(finish="tool_calls"),
        usage(),
        DONE,
    ]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    async with OpenAIPeer() as peer, serving(lab(peer.base_url)) as served:
        peer.script_route(CHAT, stream(steps))
        async with client_of(served) as client:
            whole = await client.chat.completions.create(**ASK, tools=tools)
        [choice] = whole.choices
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == "Look:"
        assert choice.message.model_extra is not None
        assert choice.message.model_extra["reasoning_content"] == "hm"
        [call] = choice.message.tool_calls or []
        assert (call.id, call.function.name) == ("a", "f")
        assert json.loads(call.function.arguments) == {"x": 1}


async def test_an_answer_that_breaks_off_is_an_error_in_the_stream() -> None:
    async with OpenAIPeer() as peer, serving(lab(peer.base_url)) as served:
        peer.script_route(CHAT, stream([delta("a")]))
        async with client_of(served) as client:
            chunks = []
            with pytest.raises(openai.APIError) as caught:
                async for chunk in await client.chat.completions.create(**ASK, stream=True):
                    chunks.append(chunk)
        assert caught.value.code == "incomplete_stream"
        assert [c.choices[0].delta.content for c in chunks if c.choices[0].delta.content] == ["a"]


async def test_leaving_closes_the_connection_to_the_server() -> None:
    async with OpenAIPeer() as peer, serving(lab(peer.base_url)) as served:
        peer.script_route(CHAT, stream([delta("a"), asyncio.Event()]))
        async with client_of(served) as client:
            events = await client.chat.completions.create(**ASK, stream=True)
            async for chunk in events:
                if chunk.choices[0].delta.content:
                    break
            await events.close()
            await (await peer.request(path=CHAT)).until_closed()


async def test_no_field_of_a_request_leads_to_another_server_or_shows_the_key() -> None:
    async with OpenAIPeer() as elsewhere, OpenAIPeer(key="other") as peer:
        async with serving(lab(peer.base_url)) as served:
            lures = ("url", "urls", "base_url", "api_base", "api_key", "host", "upstream")
            extra = dict.fromkeys(lures, elsewhere.base_url)
            reply = await served.client.post("/v1/chat/completions", json=ASK | extra)
            assert reply.status_code == 400
            assert KEY not in reply.text
            for name in (f"lab/{elsewhere.base_url}/m", f"{elsewhere.base_url}/m"):
                await served.client.post("/v1/chat/completions", json=ASK | {"model": name})
            listing = await served.client.get("/api/v1/models")
            assert KEY not in listing.text
            assert listing.json()["provider_errors"][0]["provider"] == "lab"
        assert elsewhere.requests == []
        assert {seen.headers["authorization"] for seen in peer.requests} == {f"Bearer {KEY}"}


async def test_a_dead_server_is_named_in_the_listing() -> None:
    async with OpenAIPeer() as peer:
        url = peer.base_url
    async with serving(lab(url)) as served:
        listing = (await served.client.get("/api/v1/models")).json()
        assert [fault["code"] for fault in listing["provider_errors"]] == ["provider_unavailable"]
        reply = await served.client.post("/v1/chat/completions", json=ASK)
        assert reply.status_code == 503


@pytest.mark.parametrize("verb", ["load", "unload"])
async def test_loading_and_unloading_are_refused_in_a_sentence(verb: str) -> None:
    async with OpenAIPeer() as peer, serving(lab(peer.base_url)) as served:
        reply = await served.client.post(f"/api/v1/models/{verb}", json={"model": "lab/m"})
        assert reply.status_code == 400
        error = reply.json()["error"]
        assert error["code"] == "unsupported_capability"
        assert "where 'lab' runs" in error["message"]


async def test_a_listing_that_is_none_is_a_fault_of_the_server() -> None:
    async with OpenAIPeer() as peer, serving(lab(peer.base_url)) as served:
        peer.script_route(MODELS, answer(200, b"<html>", "text/html"))
        listing = (await served.client.get("/api/v1/models")).json()
        codes = [fault["code"] for fault in listing["provider_errors"]]
        assert codes == ["provider_protocol_error"]
