"""A stranger makes routes and asks why: with the command, over restarts, at two gateways."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.process.conftest import GatewayProcess, chat, run_gateway

Serve = Callable[..., GatewayProcess]
MODEL = "huggingface/smol"


def run(process: GatewayProcess, *arguments: str) -> tuple[int, str, str]:
    port = process.url.rpartition(":")[2]
    done = run_gateway(process.environment | {"GATEWAY_PORT": port}, *arguments)
    return done.returncode, done.stdout, done.stderr


def decision(process: GatewayProcess, decision_id: str) -> dict[str, Any]:
    reply = process.client.get(f"/api/v1/decisions/{decision_id}")
    assert reply.status_code == 200, reply.text
    told: dict[str, Any] = reply.json()
    return told


def ask(process: GatewayProcess, model: str) -> str:
    reply = process.client.post("/api/v1/generate", json=chat(model, "hi", max_tokens=2))
    assert reply.status_code == 200, reply.text
    return str(reply.headers["x-gateway-decision"])


def ended_streams(process: GatewayProcess) -> set[str]:
    """Return the ids of the streams whose end is in the database."""
    query = {"query": "{ sessions { id end } }"}
    told = process.client.post("/graphql", json=query).json()["data"]["sessions"]
    return {each["id"] for each in told if each["end"] is not None}


@pytest.mark.timeout(120)
def test_the_commands_make_routes_and_tell_why(serve: Serve) -> None:
    gateway = serve()
    code, said, warned = run(gateway, "routes", "set", "mine", "ollama/away", MODEL)
    assert (code, said) == (0, f"mine  (version 1)  listed: ollama/away, {MODEL}\n")
    assert "'ollama/away' is in no listing now." in warned
    assert run(gateway, "routes", "set", "short", MODEL)[0] == 0
    code, said, _ = run(gateway, "routes", "list")
    assert f"short  (version 2)  means {MODEL}" in said.splitlines()
    code, said, _ = run(gateway, "routes", "explain", "mine")
    assert code == 0
    assert "chosen  ollama/away" in said and f"next    {MODEL}" in said
    decision_id = ask(gateway, "mine")
    code, said, _ = run(gateway, "decisions", "show", decision_id)
    assert code == 0
    assert f"mine -> {MODEL}" in said
    assert "1. after" in said and "provider_unavailable" in said
    code, said, _ = run(gateway, "decisions", "list", "--json", "--limit", "1")
    assert [each["id"] for each in json.loads(said)["decisions"]] == [decision_id]
    late = run(gateway, "routes", "set", "short", MODEL, "--version", "1")
    assert late[0] == 1 and "and not the version 1" in late[2]
    gone = run(gateway, "routes", "rm", "short", "--version", "2")
    assert (gone[0], gone[1]) == (0, "short means nothing any more.\n")
    assert run(gateway, "routes", "show", "short")[0] == 1
    assert run(gateway, "routes", "set", "w", f"{MODEL}=3", "--order", "weighted")[1].endswith(
        f"weighted: {MODEL}=3\n"
    )


@pytest.mark.timeout(120)
def test_routes_and_decisions_outlive_the_gateway(serve: Serve) -> None:
    """Also one that is killed, for what the records of its streams tell."""
    first = serve()
    route = {"candidates": ["ollama/away", MODEL]}
    assert first.client.put("/api/v1/routes/any", json=route).status_code == 201
    by_route, by_name = ask(first, "any"), ask(first, MODEL)
    first.terminate()
    first.wait()
    second = serve()
    kept = decision(second, by_route)
    assert (kept["source"], kept["rule"], kept["rule_version"]) == ("database", "listed", 1)
    assert kept["candidates"][0]["attempts"][0]["error"] == "provider_unavailable"
    kept = decision(second, by_name)
    assert (kept["source"], kept["outcome"], kept["model"]) == ("session", "answered", "smol")
    ask(second, "any")
    direct = ask(second, MODEL)
    while direct not in ended_streams(second):
        time.sleep(0.05)
    second.kill()
    third = serve()
    assert decision(third, direct)["source"] == "session"


@pytest.mark.timeout(120)
def test_a_route_made_at_one_gateway_holds_at_the_other(serve: Serve, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    here, there = (
        serve(
            GATEWAY_NODE=name,
            GATEWAY_DATA_DIR=str(tmp_path / name),
            GATEWAY_DATABASE_URL=url,
        )
        for name in ("here", "there")
    )
    missing = there.client.post("/api/v1/generate", json=chat("mine", "hi", max_tokens=2))
    assert missing.status_code in (404, 503)
    here.client.put("/api/v1/routes/mine", json={"candidates": [MODEL]}).raise_for_status()
    while "mine" not in [
        each["name"] for each in there.client.get("/api/v1/routes").json()["routes"]
    ]:
        time.sleep(0.05)
    told = decision(there, ask(there, "mine"))
    assert (told["rule"], told["rule_version"], told["node"]) == ("listed", 1, "there")
    # And one tells of the other's requests, once they are written.
    while told["id"] not in [
        each["id"] for each in here.client.get("/api/v1/decisions").json()["decisions"]
    ]:
        time.sleep(0.05)
    assert decision(here, told["id"])["node"] == "there"
