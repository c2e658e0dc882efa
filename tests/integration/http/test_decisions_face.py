"""Every reply that was routed names its decision, and the decision tells why."""

from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest

from gateway.core.errors import NoRoom, ProviderUnavailable
from gateway.core.events import Started, TextDelta
from gateway.core.keys import KeyOrder, KeyScope
from gateway.core.models import Capability, ModelInfo
from gateway.core.names import ModelRef
from tests.integration.http.serving import Served, serving
from tests.scripted_provider import ECHO, ScriptedProvider, answer

HEADER = "x-gateway-decision"
CHAT = {"messages": [{"role": "user", "content": "hi"}]}
CHAIN = {"any": ["full/echo", "scripted/echo"]}


def full() -> ScriptedProvider:
    """Return a provider that has no room, ever."""
    return ScriptedProvider([NoRoom("Every model is in use.")], name="full")


async def decision(served: Served, reply: httpx.Response, **headers: str) -> dict[str, Any]:
    found = await served.client.get(f"/api/v1/decisions/{reply.headers[HEADER]}", headers=headers)
    assert found.status_code == 200, found.text
    told: dict[str, Any] = found.json()
    return told


@pytest.mark.parametrize(
    ("path", "body", "id_of"),
    [
        ("/api/v1/generate", CHAT, lambda reply: reply.json()["decision_id"]),
        ("/api/v1/stream", CHAT, lambda reply: reply.headers["x-stream-id"]),
        ("/api/v1/streams", CHAT, lambda reply: reply.json()["stream_id"]),
        ("/v1/chat/completions", CHAT, lambda reply: reply.json()["id"].partition("-")[2]),
        ("/v1/chat/completions", {**CHAT, "stream": True}, lambda r: r.headers["x-stream-id"]),
        ("/v1/completions", {"prompt": "hi"}, lambda reply: reply.json()["id"].partition("-")[2]),
        ("/v1/embeddings", {"input": "hi"}, lambda reply: reply.headers[HEADER]),
        ("/api/v1/embed", {"input": ["hi"]}, lambda reply: reply.headers[HEADER]),
    ],
)
async def test_every_reply_names_its_decision(path: str, body: dict[str, Any], id_of: Any) -> None:
    async with serving(ScriptedProvider(answer("x"))) as served:
        reply = await served.client.post(path, json={"model": "scripted/echo", **body})
        assert reply.is_success, reply.text
        assert reply.headers[HEADER] == id_of(reply)
        while served.gateway.streams.live_count:
            await anyio.lowlevel.checkpoint()
        told = await decision(served, reply)
        assert (told["requested_model"], told["outcome"]) == ("scripted/echo", "answered")
        assert told["kind"] == ("embedding" if "input" in body else "stream")
        assert told["stream_id"] == (None if "input" in body else told["id"])
        assert told["request_id"] == reply.headers["x-request-id"]
        [candidate] = told["candidates"]
        assert (candidate["model"], candidate["outcome"]) == ("scripted/echo", "answered")


@pytest.mark.parametrize("path", ["/api/v1/generate", "/api/v1/stream", "/v1/chat/completions"])
async def test_a_failure_names_its_decision_too(path: str) -> None:
    async with serving(full()) as served:
        reply = await served.client.post(path, json={"model": "full/echo", **CHAT})
        assert reply.status_code == 503
        told = await decision(served, reply)
        assert (told["outcome"], told["error"]) == ("failed", "no_room")
        assert told["message"] == "Every model is in use."
        missing = await served.client.post(path, json={"model": "full/ech0", **CHAT})
        assert (await decision(served, missing))["requested_model"] == "full/ech0"


async def test_embeddings_that_fail_name_their_decision_too() -> None:
    provider = ScriptedProvider()
    provider.embed_error = ProviderUnavailable("scripted", "Nobody is there.")

    async def no_wait(_seconds: float) -> None:
        pass

    async with serving(provider, retry_sleep=no_wait) as served:
        body = {"model": "scripted/echo", "input": "hi"}
        reply = await served.client.post("/v1/embeddings", json=body)
        told = await decision(served, reply)
        assert (told["kind"], told["error"]) == ("embedding", "provider_unavailable")
        [candidate] = told["candidates"]
        assert [each["error"] for each in candidate["attempts"]] == ["provider_unavailable"] * 3


async def test_what_was_not_routed_names_none() -> None:
    async with serving(ScriptedProvider(answer("x"))) as served:
        for reply in (
            await served.client.post("/api/v1/stream", json={"model": 7}),
            await served.client.get("/v1/models"),
            await served.client.get("/nowhere"),
        ):
            assert HEADER not in reply.headers


async def test_a_chain_tells_who_was_skipped_who_failed_and_who_answered() -> None:
    blind = ScriptedProvider(name="blind")
    blind.listed = [ModelInfo(ModelRef("blind", "echo"), capabilities=(Capability.EMBEDDING,))]
    providers = (full(), blind, ScriptedProvider(answer("x")))
    rules = {"any": ["full/echo", "blind/echo", "scripted/echo", "nobody"]}
    async with serving(*providers, virtual_models=rules) as served:
        reply = await served.client.post("/api/v1/generate", json={"model": "any", **CHAT})
        told = await decision(served, reply)
    shown = [(c["model"], c["verdict"], c["code"], c["outcome"]) for c in told["candidates"]]
    assert shown == [
        ("full/echo", "chosen", "first", "failed"),
        ("scripted/echo", "next", "able", "answered"),
        ("blind/echo", "skipped", "unsupported_capability", "not_asked"),
        ("nobody", "skipped", "model_not_found", "not_asked"),
    ]
    assert [each["error"] for each in told["candidates"][0]["attempts"]] == ["no_room"]
    assert (told["rule"], told["rule_version"]) == ("listed", 0)
    assert (told["provider"], told["model"], told["source"]) == ("scripted", "echo", "memory")


async def test_a_running_stream_has_a_decision_and_a_cancelled_one_keeps_it() -> None:
    never = anyio.Event()
    provider = ScriptedProvider([Started(ECHO), TextDelta("a"), never])
    async with serving(provider) as served:
        body = {"model": "scripted/echo", **CHAT}
        async with served.client.stream("POST", "/api/v1/stream", json=body) as reply:
            assert (await decision(served, reply))["outcome"] == "running"
        while served.gateway.streams.live_count:
            await anyio.lowlevel.checkpoint()
        told = await decision(served, reply)
        assert (told["outcome"], told["candidates"][0]["outcome"]) == ("cancelled", "asked")


async def test_a_key_that_infers_sees_its_own_and_one_that_manages_all() -> None:
    async with serving(ScriptedProvider(answer("x"))) as served:

        async def key(*scopes: KeyScope) -> tuple[str, dict[str, str]]:
            made, text = await served.gateway.keys.create(KeyOrder("k", scopes))
            return made.id, {"authorization": f"Bearer {text}"}

        (alice, hers), (_, his), (_, boss) = (
            await key(KeyScope.INFER),
            await key(KeyScope.INFER),
            await key(KeyScope.MANAGE),
        )
        body = {"model": "scripted/echo", **CHAT}
        reply = await served.client.post("/api/v1/generate", json=body, headers=hers)
        assert (await decision(served, reply, **hers))["caller"] == alice
        assert (await decision(served, reply, **boss))["caller"] == alice
        url = f"/api/v1/decisions/{reply.headers[HEADER]}"
        refused = await served.client.get(url, headers=his)
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "decision_not_found")
        for headers, count in ((hers, 1), (his, 0), (boss, 1)):
            for query in ("", f"?caller={alice}"):
                listed = await served.client.get(f"/api/v1/decisions{query}", headers=headers)
                assert len(listed.json()["decisions"]) == count


async def test_decisions_are_listed_newest_first_by_filters() -> None:
    async with serving(full(), ScriptedProvider(answer("x")), virtual_models=CHAIN) as served:
        for model in ("any", "full/echo", "scripted/echo"):
            await served.client.post("/api/v1/generate", json={"model": model, **CHAT})

        async def listed(**query: str) -> list[str]:
            reply = await served.client.get("/api/v1/decisions", params=query)
            assert reply.status_code == 200, reply.text
            return [each["requested_model"] for each in reply.json()["decisions"]]

        assert await listed() == ["scripted/echo", "full/echo", "any"]
        assert await listed(limit="1") == ["scripted/echo"]
        assert await listed(requested_model="any") == ["any"]
        assert await listed(outcome="failed") == ["full/echo"]
        assert await listed(error="no_room", provider="full") == ["full/echo"]
        assert await listed(provider="scripted") == ["scripted/echo", "any"]
        assert await listed(until="1000") == []
        assert await listed(since="1000") == ["scripted/echo", "full/echo", "any"]


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=201", "limit=x", "limit=9999999999", "outcome=well", "since=nan",
     "since=-1", "until=soon", "until=1e300", "nonsense=1"],
)  # fmt: skip
async def test_a_listing_that_means_nothing_is_refused_by_its_parameter(query: str) -> None:
    async with serving(ScriptedProvider()) as served:
        reply = await served.client.get(f"/api/v1/decisions?{query}")
        assert reply.status_code == 400
        assert query.partition("=")[0] in reply.json()["error"]["message"]
