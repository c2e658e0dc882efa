"""One memory for all, as its users see it: over HTTP, GraphQL, the command and the metrics."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from subprocess import CompletedProcess
from typing import Any

import anyio.to_thread
import httpx
import pytest

from gateway.engine.weights.linear import packs_bfloat16
from tests.integration.ollama_peer import OllamaPeer
from tests.integration.process.conftest import GatewayProcess, chat, run_gateway

MB = 1_000_000
BUDGET = 9 * MB
"""For a model of Ollama of 9 MB, or for `smol`."""


@pytest.fixture
async def gateway(serve: Callable[..., GatewayProcess], ollama_peer: OllamaPeer) -> GatewayProcess:
    ollama_peer.add_model("llama3.2", size=8 * MB)

    def start() -> GatewayProcess:
        return serve(
            OLLAMA_HOST=ollama_peer.url,
            GATEWAY_MEMORY_BUDGET_BYTES=str(BUDGET),
            GATEWAY_OLLAMA_DEVICE="cpu",
            GATEWAY_HF_DEVICE="cpu",
        )

    return await anyio.to_thread.run_sync(start)


async def test_a_load_in_one_provider_unloads_an_idle_model_of_the_other(
    gateway: GatewayProcess, ollama_peer: OllamaPeer, environment: dict[str, str]
) -> None:
    async with httpx.AsyncClient(base_url=gateway.url, timeout=30, trust_env=False) as client:
        empty = (await client.get("/api/v1/memory")).json()
        assert empty["devices"] == [
            {
                "device": "cpu",
                "budget_bytes": BUDGET,
                "used_bytes": 0,
                "reserved_bytes": 0,
                "overhead_bytes": 0,
                "free_bytes": BUDGET,
                "providers": {},
                "models": [],
            }
        ]
        await client.post("/api/v1/generate", json=chat("ollama/llama3.2", "hi"))
        [device] = (await client.get("/api/v1/memory")).json()["devices"]
        assert device["models"] == [
            {
                "model": "ollama/llama3.2:latest",
                "provider": "ollama",
                "memory_bytes": 9 * MB,
                "basis": "told",
                "in_use": False,
                "pinned": False,
            }
        ]
        order = {"model": "huggingface/smol", "dry_run": True}
        plan = (await client.post("/api/v1/models/load", json=order)).json()
        assert (plan["fits"], plan["evictions"]) == (True, ["ollama/llama3.2:latest"])
        loaded = await client.post(
            "/api/v1/models/load", json=order | {"dry_run": False, "wait": True}
        )
        assert loaded.status_code == 200 and ollama_peer.loaded == {}

        query = """{ memory { evictionPolicy elsewhere
            devices { device budgetBytes usedBytes freeBytes reservedBytes
              models { id provider memoryBytes basis inUse pinned } }
            evictions { provider reason count } } }"""
        shown = (await client.post("/graphql", json={"query": query})).json()["data"]["memory"]
        held = loaded.json()["memory_bytes"]
        assert shown == {
            "evictionPolicy": "lru",
            "elsewhere": [],
            "devices": [
                {
                    "device": "cpu",
                    "budgetBytes": BUDGET,
                    "usedBytes": held,
                    "freeBytes": BUDGET - held,
                    "reservedBytes": 0,
                    "models": [
                        {
                            "id": "huggingface/smol",
                            "provider": "huggingface",
                            "memoryBytes": held,
                            "basis": "MEASURED",
                            "inUse": False,
                            "pinned": False,
                        }
                    ],
                }
            ],
            "evictions": [{"provider": "ollama", "reason": "neighbour", "count": 1}],
        }
        lines = (await client.get("/metrics")).text.splitlines()
        figures = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        evicted = figures['gateway_evictions_total{provider="ollama",reason="neighbour"}']
        budget = figures['gateway_memory_budget_bytes{device="cpu"}']
        used = figures['gateway_memory_used_bytes{device="cpu",provider="huggingface"}']
        assert (float(evicted), float(budget), float(used)) == (1, BUDGET, held)

    def run(*arguments: str) -> str:
        port = gateway.url.rpartition(":")[2]
        done = run_gateway(environment | {"GATEWAY_PORT": port}, "memory", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    said = await anyio.to_thread.run_sync(run)
    assert "free of 9.0 MB" in said and "huggingface/smol" in said
    assert "evicted from ollama (neighbour): 1" in said
    as_json = json.loads(await anyio.to_thread.run_sync(run, "--json"))
    assert as_json["devices"][0]["used_bytes"] == held


async def test_a_decision_tells_the_loads_and_evictions_that_its_request_caused(
    gateway: GatewayProcess, environment: dict[str, str]
) -> None:
    async with httpx.AsyncClient(base_url=gateway.url, timeout=30, trust_env=False) as client:

        async def decide(model: str) -> tuple[str, list[tuple[str, str, str | None]]]:
            reply = await client.post("/api/v1/generate", json=chat(model, "hi", max_tokens=2))
            assert reply.status_code == 200, reply.text
            decision_id = reply.headers["X-Gateway-Decision"]
            found = (await client.get(f"/api/v1/decisions/{decision_id}")).json()
            times = [each["at_ms"] for each in found["memory"]]
            assert times == sorted(times) and all(0 <= at <= 60_000 for at in times)
            moves = [(each["change"], each["model"], each["reason"]) for each in found["memory"]]
            return decision_id, moves

        _, first = await decide("ollama/llama3.2")
        assert first == [("load", "ollama/llama3.2:latest", None)]
        assert (await decide("ollama/llama3.2"))[1] == []
        decision_id, moves = await decide("huggingface/smol")
        assert moves == [
            ("eviction", "ollama/llama3.2:latest", "neighbour"),
            ("load", "huggingface/smol", None),
        ]
        assert (await decide("huggingface/smol"))[1] == []
        query = "query($id: ID!) { decision(id: $id) { memory { change model reason } } }"
        asked = {"query": query, "variables": {"id": decision_id}}
        shown = (await client.post("/graphql", json=asked)).json()["data"]["decision"]
        assert [each["change"] for each in shown["memory"]] == ["EVICTION", "LOAD"]

    def show() -> str:
        port = gateway.url.rpartition(":")[2]
        settings = environment | {"GATEWAY_PORT": port}
        return run_gateway(settings, "decisions", "show", decision_id).stdout

    said = await anyio.to_thread.run_sync(show)
    assert "eviction of ollama/llama3.2:latest after" in said and "(neighbour)" in said
    assert "load of huggingface/smol after" in said


async def test_warm_first_asks_whoever_is_in_memory_at_this_moment(
    serve: Callable[..., GatewayProcess], ollama_peer: OllamaPeer
) -> None:
    ollama_peer.add_model("llama3.2", size=8 * MB)
    both = ["ollama/llama3.2", "huggingface/smol"]
    rules = {
        "theirs-first": {"order": "warm_first", "candidates": both},
        "ours-first": {"order": "warm_first", "candidates": both[::-1]},
    }
    gateway = await anyio.to_thread.run_sync(
        lambda: serve(
            OLLAMA_HOST=ollama_peer.url,
            GATEWAY_MEMORY_BUDGET_BYTES=str(BUDGET),
            GATEWAY_OLLAMA_DEVICE="cpu",
            GATEWAY_HF_DEVICE="cpu",
            GATEWAY_VIRTUAL_MODELS=json.dumps(rules),
            GATEWAY_RECONCILE_INTERVAL_S="3600",  # nobody looks but for the requests
        )
    )
    async with httpx.AsyncClient(base_url=gateway.url, timeout=30, trust_env=False) as client:

        async def ask(model: str) -> str:
            reply = await client.post("/api/v1/generate", json=chat(model, "hi", max_tokens=2))
            answered: str = reply.json()["model"]
            return answered

        for _ in range(2):  # there is room for one: each load evicts the other
            assert await ask("huggingface/smol") == "huggingface/smol"
            assert await ask("theirs-first") == "huggingface/smol"
            assert await ask("ollama/llama3.2") == "ollama/llama3.2:latest"
            assert await ask("ours-first") == "ollama/llama3.2:latest"


@pytest.mark.skipif(
    find_spec("llvmlite") is None or not packs_bfloat16(), reason="nothing is compiled here"
)
def test_what_the_compiler_took_is_counted_and_stays_when_the_model_goes(
    serve: Callable[..., GatewayProcess], environment: dict[str, str]
) -> None:
    gateway = serve(GATEWAY_HF_DEVICE="cpu")
    model = {"model": "huggingface/demo"}

    def plan() -> dict[str, Any]:
        reply = gateway.client.post("/api/v1/models/load", json=model | {"dry_run": True})
        found: dict[str, Any] = reply.json()
        return found

    def device() -> dict[str, Any]:
        [found] = gateway.client.get("/api/v1/memory").json()["devices"]
        assert found["used_bytes"] + found["free_bytes"] == found["budget_bytes"]
        return dict(found)

    before = plan()
    assert device()["overhead_bytes"] == 0
    gateway.generate("huggingface/demo", "hi", max_tokens=2)
    loaded = device()
    held = sum(each["memory_bytes"] for each in loaded["models"])
    taken = loaded["overhead_bytes"]
    # LLVM's own pages are some 60 MB, and it was reserved for.
    assert 50 * MB < taken < before["need_bytes"]
    assert loaded["used_bytes"] == held + taken
    assert "by libraries" in run_gateway_here(gateway, environment, "memory").stdout
    lines = gateway.client.get("/metrics").text.splitlines()
    [figure] = [line for line in lines if line.startswith("gateway_memory_overhead_bytes{")]
    assert float(figure.rpartition(" ")[2]) == taken

    gateway.client.post("/api/v1/models/unload", json=model | {"wait": True})
    assert (device()["used_bytes"], device()["overhead_bytes"]) == (taken, taken)
    again = plan()
    assert again["need_bytes"] < before["need_bytes"] - taken
    assert again["budget_bytes"] == before["budget_bytes"] - taken


def run_gateway_here(
    gateway: GatewayProcess, environment: dict[str, str], *arguments: str
) -> CompletedProcess[str]:
    port = gateway.url.rpartition(":")[2]
    return run_gateway(environment | {"GATEWAY_PORT": port}, *arguments)
