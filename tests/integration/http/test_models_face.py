"""GET /api/v1/models: filters, and providers that do not answer."""

import anyio
from msgspec.structs import replace

from gateway.core.errors import ProviderUnavailable
from gateway.core.models import Capability, ModelInfo
from gateway.core.names import ModelRef
from gateway.core.states import ModelState
from tests.integration.http.serving import Served, serving
from tests.scripted_provider import ScriptedProvider

URL = "/api/v1/models"


async def _ids(served: Served, **query: str | list[str]) -> list[str]:
    reply = await served.client.get(URL, params=query)
    assert reply.status_code == 200
    return [model["id"] for model in reply.json()["models"]]


async def test_a_model_is_described_whole() -> None:
    provider = ScriptedProvider()
    provider.listed = [
        replace(
            provider.listed[0],
            capabilities=(Capability.CHAT,),
            state=ModelState.FAILED,
            message="out of memory",
        )
    ]
    async with serving(provider) as served:
        reply = await served.client.get(URL)
    assert reply.json() == {
        "models": [
            {
                "id": "scripted/echo",
                "provider": "scripted",
                "name": "echo",
                "state": "FAILED",
                "size_bytes": 1234,
                "context_length": 2048,
                "capabilities": ["chat"],
                "batched": None,
                "virtual": False,
                "metadata": {"family": "parrot"},
                "message": "out of memory",
            }
        ],
        "provider_errors": [],
    }


async def test_a_virtual_model_is_listed_with_what_its_candidates_can() -> None:
    one, two = ScriptedProvider(name="one"), ScriptedProvider(name="two")
    one.listed = [ModelInfo(ModelRef("one", "echo"), capabilities=(Capability.CHAT,))]
    can = (Capability.CHAT, Capability.TOOLS)
    two.listed = [ModelInfo(ModelRef("two", "big"), ModelState.LOADED, None, 8192, can)]
    rules = {"virtual_models": {"any": ["one/echo", "big", "nobody/x"], "none": ["nobody/x"]}}
    async with serving(one, two, **rules, aliases={"big": "two/big"}) as served:
        listed = (await served.client.get(URL, params={"provider": "virtual"})).json()["models"]
        assert listed[0] == {
            "id": "any",
            "provider": "virtual",
            "name": "any",
            "state": "LOADED",
            "size_bytes": None,
            "context_length": 8192,
            "capabilities": ["chat", "tools"],
            "batched": None,
            "virtual": True,
            "metadata": {"candidates": "one/echo, big, nobody/x", "order": "listed"},
        }
        assert (listed[1]["id"], listed[1]["state"]) == ("none", "NOT_LOADED")
        assert await _ids(served, text="two/big") == ["two/big"]
        assert await _ids(served, capability="tools") == ["two/big", "any"]
        await served.client.put("/api/v1/rotations/r", json={"models": ["nobody/x", "two/big"]})
        await served.client.put("/api/v1/routes/turns", json={"candidates": ["rotation/r"]})
        shown = (await served.client.get(URL)).json()["models"]
        marked = {model["id"] for model in shown if model["virtual"]}
        assert marked == {"any", "none", "rotation/r", "turns"}


async def test_filters_narrow_the_listing() -> None:
    one, two = ScriptedProvider(name="one"), ScriptedProvider(name="two")
    two.listed.append(
        ModelInfo(ModelRef("two", "small"), capabilities=(Capability.CHAT, Capability.TOOLS))
    )
    async with serving(one, two) as served:
        assert await _ids(served) == ["one/echo", "two/echo", "two/small"]
        assert await _ids(served, provider="two") == ["two/echo", "two/small"]
        assert await _ids(served, provider=["one", "two"], text="PARROT") == [
            "one/echo",
            "two/echo",
        ]
        assert await _ids(served, provider="one,two", state="not_loaded") == ["two/small"]
        assert await _ids(served, capability="chat,tools", text="small") == ["two/small"]
        assert await _ids(served, capability=["chat", "vision"]) == ["one/echo", "two/echo"]
        wrong = await served.client.get(URL, params={"capability": "flying"})
    assert wrong.status_code == 400
    assert "vision" in wrong.json()["error"]["hint"]


async def test_silent_and_dead_providers_are_labelled_and_do_not_hold_up_the_rest() -> None:
    good, dead, silent = (ScriptedProvider(name=name) for name in ("good", "dead", "silent"))
    dead.listing_error = ProviderUnavailable("dead", "Nobody is there.")

    async def hang() -> list[ModelInfo]:
        await anyio.sleep_forever()
        return []

    silent.models = hang  # type: ignore[method-assign]
    async with serving(good, dead, silent, catalog_timeout_s=1) as served:
        with anyio.fail_after(5):
            native = await served.client.get(URL)
            openai = await served.client.get("/v1/models")
    errors = native.json()["provider_errors"]
    assert [(e["provider"], e["code"]) for e in errors] == [
        ("dead", "provider_unavailable"),
        ("silent", "provider_timeout"),
    ]
    assert errors[0]["message"] == "Nobody is there." and errors[0]["hint"]
    assert [model["id"] for model in native.json()["models"]] == ["good/echo"]
    assert [model["id"] for model in openai.json()["data"]] == ["good/echo"]
    assert openai.json()["provider_errors"] == errors


async def test_a_name_that_nobody_is_known_to_have_is_told_as_a_guess() -> None:
    good, away = ScriptedProvider(), ScriptedProvider(name="ollama")
    away.listing_error = ProviderUnavailable("ollama", "Ollama cannot be reached.")
    async with serving(good, away) as served:
        guessed = (await served.client.get("/v1/models/ech")).json()["error"]
        named = (await served.client.get("/v1/models/ollama/ech")).json()["error"]
    assert guessed["code"] == named["code"] == "provider_unavailable"
    assert "No model 'ech' is known here" in guessed["message"]
    assert "Did you mean scripted/echo?" in guessed["message"]
    assert named["message"].startswith("Ollama cannot be reached.")
