"""Aliases and virtual models made over HTTP: they hold at once, and nobody's change is lost."""

from typing import Any

import httpx
import pytest

from gateway.core.errors import ProviderUnavailable
from gateway.core.keys import KeyOrder, KeyScope
from tests.integration.http.serving import Served, serving
from tests.scripted_provider import ScriptedProvider, answer

CHAT = {"messages": [{"role": "user", "content": "hi"}]}
RULES: dict[str, Any] = {"virtual_models": {"fixed": ["scripted/echo"]}}


async def put(served: Served, name: str, body: dict[str, Any], **headers: str) -> httpx.Response:
    return await served.client.put(f"/api/v1/routes/{name}", json=body, headers=headers)


def code_of(reply: httpx.Response) -> tuple[int, str]:
    return reply.status_code, reply.json()["error"]["code"]


async def test_a_route_that_is_made_holds_at_once_for_every_face() -> None:
    async with serving(ScriptedProvider(answer("x"))) as served:
        made = await put(served, "team/chat", {"candidates": ["nobody", "scripted/echo"]})
        assert made.status_code == 201
        assert made.json()["candidates"] == [
            {"model": "nobody", "weight": 1.0},
            {"model": "scripted/echo", "weight": 1.0},
        ]
        assert made.headers["etag"] == f'"{made.json()["version"]}"'
        assert "There is no model 'nobody'." in made.json()["warnings"][0]
        assert (await put(served, "short", {"model": "scripted/echo"})).status_code == 201
        for name in ("team/chat", "short"):
            reply = await served.client.post("/api/v1/generate", json={"model": name, **CHAT})
            assert reply.json()["model"] == "scripted/echo"
            decided = await served.client.get(f"/api/v1/decisions/{reply.json()['decision_id']}")
            rule, version = decided.json()["rule"], decided.json()["rule_version"]
            expected = ("alias", None) if name == "short" else ("listed", made.json()["version"])
            assert (rule, version) == expected
        listed = await served.client.get("/v1/models")
        assert "team/chat" in [each["id"] for each in listed.json()["data"]]
        assert (await served.client.get("/v1/models/team/chat")).json()["owned_by"] == "gateway"
        assert (await served.client.get("/v1/models/short")).json()["id"] == "scripted/echo"
        assert (await served.client.delete("/api/v1/routes/team/chat")).status_code == 200
        gone = await served.client.post("/api/v1/generate", json={"model": "team/chat", **CHAT})
        assert code_of(gone) == (404, "model_not_found")


async def test_a_route_can_be_read_changed_and_listed_beside_those_of_the_configuration() -> None:
    async with serving(ScriptedProvider(), **RULES) as served:
        made = await put(served, "short", {"model": "scripted/echo"})
        weighted = {"candidates": [{"model": "scripted/echo", "weight": 3}], "order": "weighted"}
        changed = await put(served, "short", weighted)
        assert changed.status_code == 200
        shown = await served.client.get("/api/v1/routes/short")
        assert shown.headers["etag"] == changed.headers["etag"] != made.headers["etag"]
        assert (shown.json()["order"], shown.json()["problem"]) == ("weighted", None)
        assert "model" not in shown.json()
        listed = (await served.client.get("/api/v1/routes")).json()["routes"]
        shown_sources = [(each["name"], each["source"], each["version"]) for each in listed]
        assert shown_sources == [
            ("fixed", "config", 0), ("short", "database", shown.json()["version"]),
        ]  # fmt: skip
        assert code_of(await served.client.get("/api/v1/routes/nobody")) == (404, "route_not_found")


async def test_no_update_is_lost() -> None:
    async with serving(ScriptedProvider()) as served:
        made = await put(served, "short", {"model": "scripted/a"}, **{"if-none-match": "*"})
        tag = made.headers["etag"]
        again = await put(served, "short", {"model": "scripted/b"}, **{"if-none-match": "*"})
        assert code_of(again) == (412, "route_changed")
        second = await put(served, "short", {"model": "scripted/b"}, **{"if-match": tag})
        assert second.status_code == 200
        late = await put(served, "short", {"model": "scripted/c"}, **{"if-match": tag})
        assert code_of(late) == (412, "route_changed")
        gone = await served.client.delete("/api/v1/routes/short", headers={"if-match": tag})
        assert code_of(gone) == (412, "route_changed")
        wrong = await put(served, "short", {"model": "scripted/c"}, **{"if-match": "latest"})
        assert code_of(wrong) == (400, "invalid_request")
        assert (await served.client.get("/api/v1/routes/short")).json()["model"] == "scripted/b"
        headers = {"if-match": second.headers["etag"]}
        removed = await served.client.delete("/api/v1/routes/short", headers=headers)
        assert removed.json()["model"] == "scripted/b"


@pytest.mark.parametrize(
    ("name", "body", "status"),
    [
        ("fixed", {"model": "scripted/echo"}, 409),
        ("x", {}, 400),
        ("x", {"model": "a", "candidates": ["b"]}, 400),
        ("x", {"model": "scripted/echo", "order": "weighted"}, 400),
        ("x", {"candidates": ["fixed"]}, 400),
        ("x", {"model": "fixed"}, 400),
        ("x", {"candidates": [{"model": "a", "weight": -1}]}, 400),
        ("x", {"candidates": [f"m{n}" for n in range(65)]}, 400),
        ("x", {"candidates": ["a"], "order": "best"}, 400),
        ("x", {"model": "a", "source": "config"}, 400),
        ("scripted/new", {"model": "scripted/echo"}, 400),
        ("n" * 513, {"model": "scripted/echo"}, 400),
        ("x", {"model": "a\x00"}, 422),
        ("x", {"model": ""}, 400),
    ],
)
async def test_what_cannot_hold_is_refused_and_changes_nothing(
    name: str, body: dict[str, Any], status: int
) -> None:
    async with serving(ScriptedProvider(), **RULES) as served:
        assert (await put(served, name, body)).status_code == status
        listed = (await served.client.get("/api/v1/routes")).json()["routes"]
        assert [each["name"] for each in listed] == ["fixed"]


async def test_an_explanation_is_the_decision_that_would_be_made_and_nobody_is_asked() -> None:
    away = ScriptedProvider([ProviderUnavailable("away", "Nobody is there.")], name="away")
    here = ScriptedProvider(answer("x"))
    rules = {"virtual_models": {"any": ["away/echo", "scripted/echo", "nobody"]}}
    async with serving(away, here, **rules) as served:

        async def explain(**body: Any) -> dict[str, Any]:
            reply = await served.client.post("/api/v1/routes/explain", json=body)
            assert reply.status_code == 200, reply.text
            assert "x-gateway-decision" not in reply.headers
            told: dict[str, Any] = reply.json()
            return told

        told = await explain(model="any", **CHAT)
        assert (told["id"], told["kind"], told["outcome"]) == (None, "dry_run", "planned")
        shown = [(each["model"], each["verdict"]) for each in told["candidates"]]
        assert shown == [
            ("away/echo", "chosen"), ("scripted/echo", "next"), ("nobody", "skipped"),
        ]  # fmt: skip
        told = await explain(model="any", input="hi")
        assert (told["kind"], told["provider"]) == ("dry_run", "away")
        told = await explain(model="nobody", **CHAT)
        assert (told["outcome"], told["error"]) == ("failed", "model_not_found")
        long = {"messages": [{"role": "user", "content": "a" * 20_000}]}
        told = await explain(model="any", **long)
        assert [each["code"] for each in told["candidates"][:2]] == ["context_too_small"] * 2
        assert away.requests == here.requests == []
        assert (await served.client.get("/api/v1/decisions")).json()["decisions"] == []
        refused = await served.client.post("/api/v1/routes/explain", json={"model": "any"})
        assert refused.status_code == 400


async def test_keys_that_infer_may_look_and_ask_but_change_nothing() -> None:
    async with serving(ScriptedProvider(), **RULES) as served:
        _, text = await served.gateway.keys.create(KeyOrder("k", (KeyScope.INFER,)))
        manager, boss = await served.gateway.keys.create(KeyOrder("k", (KeyScope.MANAGE,)))
        mine = {"authorization": f"Bearer {text}"}
        assert (await served.client.get("/api/v1/routes", headers=mine)).status_code == 200
        body = {"model": "fixed", **CHAT}
        told = await served.client.post("/api/v1/routes/explain", json=body, headers=mine)
        assert told.status_code == 200
        assert (await put(served, "x", {"model": "scripted/echo"}, **mine)).status_code == 403
        gone = await served.client.delete("/api/v1/routes/fixed", headers=mine)
        assert gone.status_code == 403
        made = await put(served, "x", {"model": "scripted/echo"}, authorization=f"Bearer {boss}")
        assert made.json()["updated_by"] == manager.id
