"""Secrets and prompts through every face of a real gateway, in answers that work and that fail:
neither its logs at their most talkative, nor /metrics, nor the traces hold any of them."""

import base64
import json
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio.to_thread
import httpx
import pytest
from websockets.asyncio.client import connect

from tests.integration.ollama_peer import OllamaPeer, answer
from tests.integration.openai_peer import CHAT, EMBEDDINGS, OpenAIPeer, vllm_error
from tests.integration.otlp_receiver import OtlpReceiver, receiving
from tests.integration.process.conftest import GatewayProcess, Migrate, run_gateway

GENERATE = "subscription ($i: GenerateInput!) { generate(input: $i) { streamId } }"


class Canaries:
    """Strings that are nowhere else, by what they stand for."""

    def __init__(self) -> None:
        self.by_name: dict[str, str] = {}

    def make(self, name: str) -> str:
        self.by_name[name] = f"canary{secrets.token_hex(16)}"
        return self.by_name[name]

    def found_in(self, text: str) -> list[str]:
        return [name for name, canary in self.by_name.items() if canary in text]


@contextmanager
def logged(environment: dict[str, str], log: Path) -> Iterator[GatewayProcess]:
    with log.open("wb") as file:
        gateway = GatewayProcess(environment, file)
    try:
        yield gateway
    finally:
        gateway.close()


@asynccontextmanager
async def in_thread(environment: dict[str, str], log: Path) -> AsyncIterator[GatewayProcess]:
    """The peers live on this loop, so neither the start nor the end must block it."""
    context = logged(environment, log)
    gateway = await anyio.to_thread.run_sync(context.__enter__)
    try:
        yield gateway
    finally:
        await anyio.to_thread.run_sync(context.__exit__, None, None, None)


def settings(canaries: Canaries, peers: dict[str, Any], collector: str) -> dict[str, str]:
    return {
        "GATEWAY_LOG_LEVEL": "debug",
        "GATEWAY_LOG_FORMAT": "json",
        "GATEWAY_KEY_PEPPER": canaries.make("pepper"),
        "GATEWAY_SECRET_KEY": canaries.make("secret key"),
        "GATEWAY_TRACES_ENDPOINT": collector,
        "GATEWAY_TRACES_HEADERS": f"authorization={canaries.make('header of the collector')}",
        "GATEWAY_OPENAI": json.dumps(peers),
        "HF_TOKEN": "hf_" + canaries.make("token of the Hub"),
        "HF_HUB_OFFLINE": "1",
    }


def bodies(model: str, canaries: Canaries) -> list[tuple[str, dict[str, Any]]]:
    """Return a request for each route that takes a prompt."""
    text = canaries.make(f"prompt for {model}")
    words = f"My secret is {text}, keep it."
    chat = {"model": model, "messages": [{"role": "user", "content": words}], "max_tokens": 4}
    call = {"name": "f", "arguments": json.dumps({"x": canaries.make(f"arguments for {model}")})}
    history = [
        {"role": "system", "content": canaries.make(f"system for {model}")},
        {"role": "user", "content": words},
        {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": call}]},
        {"role": "tool", "tool_call_id": "1", "content": canaries.make(f"result for {model}")},
    ]
    image = base64.b64encode(canaries.make(f"image for {model}").encode()).decode()
    native = {"model": model, "options": {"max_tokens": 4}}
    return [
        ("/api/v1/stream", {**native, "prompt": words}),
        ("/api/v1/generate", {**native, "messages": chat["messages"]}),
        ("/api/v1/generate", {**native, "prompt": words, "images": [image]}),
        ("/api/v1/generate", {**native, "prompt": words, "options": {"stop": words}}),
        ("/v1/chat/completions", chat),
        ("/v1/chat/completions", {**chat, "stream": True, "messages": history}),
        ("/v1/completions", {"model": model, "prompt": words, "max_tokens": 4}),
        ("/v1/embeddings", {"model": model, "input": [words, text]}),
    ]


async def talk(
    client: httpx.AsyncClient, model: str, canaries: Canaries, key: str
) -> AsyncIterator[str]:
    """Ask `model` by every face; give what was answered where that was no answer of a model."""
    for path, body in bodies(model, canaries):
        reply = await client.post(path, json=body)
        if reply.status_code >= 400:
            yield reply.text
    words = canaries.make(f"prompt by GraphQL for {model}")
    asked = {"model": model, "prompt": words, "options": {"maxTokens": 4}}
    accept = {"accept": "text/event-stream"}
    operation = {"query": GENERATE, "variables": {"i": asked}}
    await client.post("/graphql", json=operation, headers=accept)
    await client.post("/graphql", json={"query": GENERATE.replace("$i)", f'"{words}")')})
    url = str(client.base_url).replace("http", "ws", 1).rstrip("/")
    async with connect(f"{url}/graphql", subprotocols=["graphql-transport-ws"], proxy=None) as ws:  # type: ignore[list-item]
        init = {"type": "connection_init", "payload": {"Authorization": f"Bearer {key}"}}
        await ws.send(json.dumps(init))
        assert json.loads(await ws.recv())["type"] == "connection_ack"
        await ws.send(json.dumps({"id": "1", "type": "subscribe", "payload": operation}))
        while json.loads(await ws.recv())["type"] not in ("complete", "error"):
            pass


async def misbehave(client: httpx.AsyncClient, canaries: Canaries) -> AsyncIterator[str]:
    """Bring wrong keys and bodies that cannot be read."""
    wrong = canaries.make("wrong key")
    for headers in ({"authorization": f"Bearer {wrong}"}, {"x-api-key": wrong}):
        yield (await client.get("/v1/models", headers=headers)).text
    torn = canaries.make("prompt in a torn body")
    for content in (f'{{"model": "m", "prompt": "{torn}', f'{{"model": ["{torn}"]}}'):
        await client.post("/api/v1/generate", content=content)
        await client.post("/graphql", content=content)
    token = {"token": "hf_" + canaries.make("token that is sent")}
    yield (await client.put("/api/v1/hub/token", json=token)).text


async def test_no_secret_and_no_prompt_is_in_logs_metrics_errors_or_traces(
    environment: dict[str, str], tmp_path: Path, migrated: Migrate
) -> None:
    canaries, said = Canaries(), list[str]()
    server_key = canaries.make("key of a server")
    log = tmp_path / "log"
    with receiving() as collector:
        async with OpenAIPeer(key=server_key) as vllm, OllamaPeer() as ollama:
            ollama.add_model("llama3.2")
            peers = {
                "vllm": {"urls": [vllm.url], "key_env": "VLLM_KEY"},
                "shut": {"urls": [vllm.url], "key_env": "WRONG_KEY"},
            }
            extra = settings(canaries, peers, collector.url) | {
                "OLLAMA_HOST": ollama.url,
                "VLLM_KEY": server_key,
                "WRONG_KEY": canaries.make("wrong key of a server"),
            }
            chosen = environment | extra
            migrated(chosen)
            key = await anyio.to_thread.run_sync(prepare, chosen)
            canaries.by_name["key"] = key.split("-")[2]
            async with (
                in_thread(chosen, log) as gateway,
                httpx.AsyncClient(
                    base_url=gateway.url,
                    timeout=60,
                    trust_env=False,
                    headers={"authorization": f"Bearer {key}"},
                ) as client,
            ):
                models = ("huggingface/demo", "ollama/llama3.2", "vllm/m", "shut/m", "none/m")
                for model in models:
                    said += [text async for text in talk(client, model, canaries, key)]
                cite(vllm, ollama)
                for model in ("ollama/llama3.2", "vllm/m"):
                    said += [text async for text in talk(client, model, canaries, key)]
                said += [text async for text in misbehave(client, canaries)]
                figures = (await client.get("/metrics")).text
    written = log.read_text(encoding="utf-8")
    require_signs_of_life(written, figures, collector)
    traces = b"".join(collector.bodies).decode("utf-8", "replace")
    assert canaries.found_in(figures) == []
    assert canaries.found_in(traces) == []
    lines = [line for line in written.splitlines() if canaries.found_in(line)]
    assert lines == [], "\n".join(lines)
    spoken = [name for name in canaries.found_in("".join(said)) if " for " not in name]
    assert spoken == [], "what a caller wrote he may read in his errors, and no secret"


def cite(vllm: OpenAIPeer, ollama: OllamaPeer) -> None:
    """Have both servers answer with errors that say the whole request again."""

    async def refuse(exchange: Any) -> None:
        body = exchange.seen.raw.decode()
        told = exchange.seen.headers.get("authorization", "")
        await vllm_error(500, f"I do not like {told} nor {body}")(exchange)

    async def fail(exchange: Any) -> None:
        body = json.dumps({"error": f"I do not like {exchange.seen.raw.decode()}"})
        await answer(500, body.encode())(exchange)

    for path in (CHAT, "/v1/completions", EMBEDDINGS):
        vllm.script_route(path, refuse)
    for path in ("/api/chat", "/api/generate", "/api/embed"):
        ollama.script_route(path, fail)


def prepare(environment: dict[str, str]) -> str:
    """Return the text of a key for everything."""
    made = run_gateway(environment, "keys", "create", "all", "--scope", "admin", "--json")
    assert made.returncode == 0, made.stderr
    return str(json.loads(made.stdout)["key"])


def require_signs_of_life(written: str, figures: str, collector: OtlpReceiver) -> None:
    """Fail where nothing could have leaked because nothing was said."""
    records = [json.loads(line) for line in written.splitlines() if line.startswith("{")]
    failed = [each for each in records if "failed: " in each["message"] and "decision_id" in each]
    assert len(failed) > 20
    for each in failed:
        if each["message"].startswith("stream "):
            assert each["decision_id"] == each["message"].split()[1]
            assert each["request_id"] != "-"
    assert any(each["level"] == "debug" for each in records)
    assert "(it cites the request)" in written
    assert 'outcome="stop"' in figures
    assert len(collector.spans) > 50


@pytest.mark.parametrize("command", ["import gateway.bootstrap.server", "import gateway.cli"])
def test_what_sends_traces_is_not_imported_where_there_are_none(command: str) -> None:
    import subprocess
    import sys

    code = f"{command}, sys; print([m for m in sys.modules if m.startswith('opentelemetry')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
