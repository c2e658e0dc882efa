"""/api/v1/hub and /api/v1/settings/hf-token over HTTP, with a Hub behind them."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.integration.http.serving import Served, serving
from tests.integration.hub_peer.files import HubFile
from tests.integration.hub_peer.server import HubPeer
from tests.integration.hub_services import BUDGET_BYTES
from tests.scripted_provider import ScriptedProvider

MODELS = "/api/v1/hub/models"
TOKEN = "/api/v1/settings/hf-token"
CANARY = "hf_canary0123456789"


@pytest.fixture
async def peer() -> AsyncIterator[HubPeer]:
    async with HubPeer() as peer:
        peer.files.add(
            "org/model",
            HubFile("config.json", b"{}", lfs=False),
            HubFile("model.safetensors", bytes(100)),
            downloads=7,
            pipeline_tag="text-generation",
            tags=["license:mit"],
            createdAt="2026-01-01T00:00:00.000Z",
        )
        yield peer


async def get(served: Served, path: str, status: int = 200, **query: str) -> Any:
    reply = await served.client.get(path, params=query)
    assert reply.status_code == status, reply.text
    return reply.json()


async def test_a_listing_and_its_age(peer: HubPeer) -> None:
    async with serving(ScriptedProvider(), hub_endpoint=peer.url) as served:
        first = await get(served, MODELS, search="mod", sort="likes", limit="5")
        again = await get(served, MODELS, search="mod", sort="likes", limit="5")
    [model] = first["models"]
    assert model == {
        "id": "org/model",
        "author": "org",
        "sha": peer.files.repos["org/model"].refs["main"],
        "task": "text-generation",
        "library": None,
        "license": "mit",
        "downloads": 7,
        "likes": None,
        "gated": None,
        "private": False,
        "tags": ["license:mit"],
        "parameters": None,
        "created_at": 1767225600.0,
        "updated_at": None,
    }
    assert (first["source"], first["age_s"], first["stale"]) == ("hub", 0.0, None)
    assert (again["models"], again["source"]) == (first["models"], "cache")
    assert len(peer.seen(path="/api/models")) == 1


async def test_one_model_with_its_files_and_whether_it_fits(peer: HubPeer) -> None:
    async with serving(ScriptedProvider(), hub_endpoint=peer.url) as served:
        found = await get(served, f"{MODELS}/org/model")
    assert [file["path"] for file in found["files"]] == ["config.json", "model.safetensors"]
    assert found["files"][1]["sha256"] is not None
    assert found["size_bytes"] == 102
    assert found["fit"] == {
        "fits": True,
        "need_bytes": 100,
        "budget_bytes": BUDGET_BYTES,
        "basis": "sizes",
        "reason": None,
    }


async def test_a_hub_that_went_away_is_answered_for_and_says_so(peer: HubPeer) -> None:
    async with serving(ScriptedProvider(), hub_endpoint=peer.url, hub_cache_s=0) as served:
        before = await get(served, MODELS)
        await peer.stop()
        after = await get(served, MODELS)
        error = await get(served, MODELS, 503, search="new")
    assert after["models"] == before["models"]
    assert (after["source"], after["stale"]["code"]) == ("cache", "hub_unavailable")
    assert error["error"]["code"] == "hub_unavailable"


async def test_a_rate_limit_says_when_to_come_back(peer: HubPeer) -> None:
    peer.fail_api("/api/models", 429, [("Retry-After", "17")])
    async with serving(ScriptedProvider(), hub_endpoint=peer.url) as served:
        for _ in range(2):
            reply = await served.client.get(MODELS)
            assert reply.status_code == 503
            assert reply.json()["error"]["code"] == "hub_rate_limited"
            assert reply.headers["retry-after"] == "17"
    assert len(peer.requests) == 1


async def test_offline_nothing_is_asked(peer: HubPeer) -> None:
    async with serving(ScriptedProvider(), hub_endpoint=peer.url, hf_hub_offline=True) as served:
        assert (await get(served, MODELS, 503))["error"]["code"] == "hub_offline"
        assert (await get(served, f"{MODELS}/org/model", 503))["error"]["code"] == "hub_offline"
    assert peer.requests == []


@pytest.mark.parametrize(
    "query",
    [{"sort": "size"}, {"limit": "0"}, {"limit": "1001"}, {"limit": "x"}, {"limit": "9" * 20}],
)
async def test_a_search_that_makes_no_sense_names_the_parameter(
    peer: HubPeer, query: dict[str, str]
) -> None:
    async with serving(ScriptedProvider(), hub_endpoint=peer.url) as served:
        error = (await get(served, MODELS, 400, **query))["error"]
    assert error["code"] == "invalid_request"
    assert next(iter(query)) in error["message"]


async def test_what_the_hub_has_not_is_404_and_what_it_keeps_is_403(peer: HubPeer) -> None:
    peer.fail_api("/api/models/org/closed", 403, [("X-Error-Code", "GatedRepo")])
    async with serving(ScriptedProvider(), hub_endpoint=peer.url) as served:
        missing = await get(served, f"{MODELS}/org/none", 404)
        closed = await get(served, f"{MODELS}/org/closed", 403)
        await get(served, f"{MODELS}/..%2f..%2fapi/x", 400)
        await get(served, f"{MODELS}/org/a%00b", 400)
    assert missing["error"]["code"] == "repository_not_found"
    assert closed["error"]["code"] == "gated_repository"
    assert "gateway token set" in closed["error"]["hint"]


async def test_an_old_model_without_an_owner_has_details(peer: HubPeer) -> None:
    peer.files.add("gpt2", HubFile("x.gguf", bytes(10)))
    async with serving(ScriptedProvider(), hub_endpoint=peer.url) as served:
        found = await get(served, f"{MODELS}/gpt2")
    assert (found["id"], found["size_bytes"]) == ("gpt2", 10)


async def test_a_token_is_set_used_told_of_and_forgotten(peer: HubPeer) -> None:
    peer.tokens[CANARY] = "alice"
    said = []
    async with serving(ScriptedProvider(), hub_endpoint=peer.url) as served:
        said.append(await get(served, TOKEN))
        reply = await served.client.put(TOKEN, json={"token": f"{CANARY}\n"})
        assert reply.headers["cache-control"] == "no-store"
        said.append(reply.json())
        said.append(await get(served, TOKEN, validate="true"))
        await get(served, MODELS)
        said.append((await served.client.delete(TOKEN)).json())
        await get(served, MODELS)
    assert [each["source"] for each in said] == ["none", "stored", "stored", "none"]
    assert said[2]["valid"] is True
    assert said[2]["account"]["name"] == "alice"
    tokens = [seen.token for seen in peer.seen(path="/api/models")]
    assert tokens == [CANARY, None]
    assert CANARY not in repr(said)


async def test_a_wrong_token_is_refused_and_never_repeated(peer: HubPeer) -> None:
    async with serving(ScriptedProvider(), hub_endpoint=peer.url) as served:
        texts = []
        for body, status in (
            ({"token": CANARY}, 422),
            ({"token": f"{CANARY} {CANARY}"}, 400),
            ({"token": CANARY, "validate": CANARY}, 400),
            ({"tokne": CANARY}, 400),
            ([CANARY], 400),
            ({"token": CANARY * 1000}, 413),
        ):
            reply = await served.client.put(TOKEN, json=body)
            assert reply.status_code == status, reply.text
            texts.append(reply.text)
        reply = await served.client.put(TOKEN, content=f'{{"token": "{CANARY}')
        texts.append(reply.text)
        assert (await get(served, TOKEN))["source"] == "none"
    assert not any(CANARY in text for text in texts)


async def test_an_environment_s_token_that_the_hub_forgot_is_told(peer: HubPeer) -> None:
    async with serving(ScriptedProvider(), hub_endpoint=peer.url, hf_token=CANARY) as served:
        report = await get(served, TOKEN, validate="1")
        error = await get(served, MODELS, 422)
        await get(served, TOKEN, 400, validate="perhaps")
    assert (report["source"], report["valid"]) == ("environment", False)
    assert error["error"]["code"] == "hub_token_rejected"


async def test_the_models_to_begin_with_are_the_operator_s(peer: HubPeer) -> None:
    async with serving(
        ScriptedProvider(), hub_endpoint=peer.url, hub_recommended=("a/b", "c/d")
    ) as served:
        assert await get(served, "/api/v1/hub/recommended") == {"models": ["a/b", "c/d"]}


async def test_pickles_fit_only_where_they_are_allowed(peer: HubPeer) -> None:
    peer.files.add(
        "org/old",
        HubFile("config.json", b'{"architectures":["LlamaForCausalLM"]}', lfs=False),
        HubFile("pytorch_model.bin", bytes(100)),
    )
    async with serving(ScriptedProvider(), hub_endpoint=peer.url) as served:
        fit = (await get(served, f"{MODELS}/org/old"))["fit"]
        assert (fit["fits"], fit["need_bytes"]) == (None, 200)
        assert "pickles" in fit["reason"] and "GATEWAY_HF_ALLOW_PICKLE" in fit["reason"]
    allowed = {"hub_endpoint": peer.url, "hf_allow_pickle": ("org/old",)}
    async with serving(ScriptedProvider(), **allowed) as served:
        fit = (await get(served, f"{MODELS}/org/old"))["fit"]
        assert (fit["fits"], fit["reason"]) == (True, None)
