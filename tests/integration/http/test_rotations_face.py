"""`/api/v1/rotations` as a client sees it, and a rotation as a model of every face."""

from typing import Any

import httpx
import pytest

from gateway.core.models import ModelInfo
from gateway.core.names import ModelRef
from tests.integration.http.serving import Served, serving
from tests.scripted_provider import ScriptedProvider, answer

URL = "/api/v1/rotations"
MODELS = ["one/echo", "two/echo"]


def providers() -> list[ScriptedProvider]:
    found = [ScriptedProvider(answer("hi"), name=name) for name in ("one", "two")]
    for provider in found:
        provider.listed = [ModelInfo(ModelRef(provider.name, "echo"), context_length=7)]
    return found


async def put(served: Served, name: str = "r", **values: Any) -> dict[str, Any]:
    reply = await served.client.put(f"{URL}/{name}", json={"models": MODELS, **values})
    assert reply.status_code == 200, reply.text
    rotation: dict[str, Any] = reply.json()
    return rotation


def code(reply: httpx.Response) -> tuple[int, str]:
    return reply.status_code, reply.json()["error"]["code"]


async def test_a_rotation_is_made_shown_changed_and_removed() -> None:
    async with serving(*providers()) as served:
        made = await put(served, interval_s=60)
        assert made["due_at"] - made["created_at"] == pytest.approx(60)
        shown = (await served.client.get(f"{URL}/r")).json()
        assert shown == made
        assert {key: shown[key] for key in ("name", "model", "current", "source", "models")} == {
            "name": "r",
            "model": "rotation/r",
            "current": "one/echo",
            "source": "database",
            "models": MODELS,
        }
        changed = await put(served, models=["two/echo", "one/echo"], requests=9)
        assert (changed["current"], changed["interval_s"], changed["due_at"]) == (
            "one/echo",
            None,
            None,
        )
        assert (await served.client.get(URL)).json() == {"rotations": [changed]}
        assert (await served.client.delete(f"{URL}/r")).json() == changed
        assert (await served.client.get(URL)).json() == {"rotations": []}


async def test_it_is_paused_resumed_and_advanced() -> None:
    async with serving(*providers()) as served:
        await put(served, interval_s=60)
        paused = (await served.client.post(f"{URL}/r/pause")).json()
        assert (paused["paused"], paused["due_at"]) == (True, None)
        resumed = (await served.client.post(f"{URL}/r/resume")).json()
        assert not resumed["paused"] and resumed["due_at"]
        asked = await served.client.post(f"{URL}/r/advance", json={"to": "two/echo"})
        assert asked.status_code == 202
        step = asked.json()
        assert (step["state"], step["trigger"], step["origin"], step["wish"]) == (
            "QUEUED",
            "HAND",
            "one/echo",
            "two/echo",
        )
        assert (await served.client.get(f"{URL}/r")).json()["step"] == step
        assert (await served.client.get(f"{URL}/r/history")).json() == {"steps": [step]}
        assert (await served.client.get(f"{URL}/r/history?limit=0")).json() == {"steps": []}
        assert code(await served.client.post(f"{URL}/r/advance")) == (409, "stale_transition")


@pytest.mark.parametrize("name", ["short", "ollama/echo", "echo:latest", "ollama/echo:latest"])
async def test_a_step_may_name_its_model_as_requests_do(name: str) -> None:
    one, two = ScriptedProvider(name="one"), ScriptedProvider(name="ollama")
    one.listed = [ModelInfo(ModelRef("one", "first"))]
    two.listed = [ModelInfo(ModelRef("ollama", "echo:latest"))]
    async with serving(one, two) as served:
        await served.client.put("/api/v1/routes/short", json={"model": "ollama/echo"})
        await put(served, models=["one/first", "ollama/echo:latest"])
        for wrong in ("first", "ollama/other", "rotation/r", ""):  # the first answers already
            reply = await served.client.post(f"{URL}/r/advance", json={"to": wrong})
            assert code(reply) == (400, "invalid_request"), wrong
        asked = await served.client.post(f"{URL}/r/advance", json={"to": name})
        assert (asked.status_code, asked.json().get("wish")) == (202, "ollama/echo:latest")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"models": ["one/echo"]},
        {"models": MODELS, "interval_s": 0.1},
        {"models": MODELS, "cron": "now"},
        {"models": MODELS, "cron": "* * * * *", "timezone": "Mars"},
        {"models": MODELS, "every": 5},
        {"models": MODELS, "requests": 1.5},
        {"models": MODELS, "drain_s": 1e300},
        {"models": [*MODELS, "rotation/x"]},
        [],
    ],
)
async def test_what_is_no_rotation_is_refused(body: object) -> None:
    async with serving(*providers()) as served:
        assert code(await served.client.put(f"{URL}/r", json=body)) == (400, "invalid_request")
        reply = await served.client.put(f"{URL}/r%20r", json={"models": MODELS})
        assert code(reply) == (400, "invalid_request")
        assert (await served.client.get(URL)).json() == {"rotations": []}


async def test_what_is_not_there_is_not_found() -> None:
    async with serving(*providers()) as served:
        client = served.client
        for reply in (
            await client.get(f"{URL}/x"),
            await client.delete(f"{URL}/x"),
            await client.get(f"{URL}/x/history"),
            *[await client.post(f"{URL}/x/{verb}") for verb in ("pause", "resume", "advance")],
        ):
            assert code(reply) == (404, "rotation_not_found")
        await put(served)
        for wrong in ({"to": "one/echo"}, {"to": "x"}, {"at": 1}, []):
            reply = await client.post(f"{URL}/r/advance", json=wrong)
            assert code(reply) == (400, "invalid_request")
        for limit in ("-1", "x", "501"):
            reply = await client.get(f"{URL}/r/history?limit={limit}")
            assert code(reply) == (400, "invalid_request")


async def test_every_face_answers_for_it_and_lists_it() -> None:
    one, two = providers()
    async with serving(one, two) as served:
        await put(served)
        body = {"model": "rotation/r", "messages": [{"role": "user", "content": "x"}]}
        chat = await served.client.post("/v1/chat/completions", json=body)
        assert chat.json()["choices"][0]["message"]["content"] == "hi"
        native = await served.client.post("/api/v1/generate", json=body)
        assert native.json()["text"] == "hi"
        vectors = {"model": "rotation/r", "input": "x"}
        assert (await served.client.post("/v1/embeddings", json=vectors)).status_code == 200
        assert (len(one.requests), len(one.embed_requests), len(two.requests)) == (2, 1, 0)

        listed = (await served.client.get("/v1/models")).json()["data"]
        [entry] = [each for each in listed if each["id"] == "rotation/r"]
        assert entry["owned_by"] == "gateway"
        assert (await served.client.get("/v1/models/rotation/r")).json() == entry
        models = (await served.client.get("/api/v1/models?provider=rotation")).json()["models"]
        [model] = models
        assert (model["id"], model["context_length"], model["metadata"]) == (
            "rotation/r",
            7,
            {"current": "one/echo"},
        )
        await served.client.delete(f"{URL}/r")
        assert (await served.client.get("/v1/models/rotation/r")).status_code == 404


async def test_a_route_may_lead_to_a_rotation_and_warns_while_there_is_none() -> None:
    one, two = providers()
    async with serving(one, two) as served:
        routes = "/api/v1/routes"
        made = await served.client.put(f"{routes}/turns", json={"model": "rotation/r"})
        assert made.json()["warnings"] == ["There is no rotation 'r' now."]
        body = {"model": "turns", "messages": [{"role": "user", "content": "x"}]}
        assert code(await served.client.post("/api/v1/generate", json=body)) == (
            404,
            "model_not_found",
        )
        await put(served)
        made = await served.client.put(f"{routes}/turns", json={"model": "rotation/r"})
        assert made.json()["warnings"] == []
        assert (await served.client.post("/api/v1/generate", json=body)).json()["text"] == "hi"
        assert (await served.client.get("/v1/models/turns")).json()["id"] == "rotation/r"
        explained = (await served.client.post(f"{routes}/explain", json=body)).json()
        assert [each["model"] for each in explained["candidates"]] == MODELS
