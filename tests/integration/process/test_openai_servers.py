"""A served gateway with OpenAI-compatible servers in its settings."""

import json
from pathlib import Path

import anyio.to_thread
import httpx

from tests.integration.openai_peer import CHAT, OpenAIPeer, vllm_error
from tests.integration.process.conftest import GatewayProcess, Migrate, chat, run_gateway

KEY = "sk-very-secret"


def start(environment: dict[str, str], log: Path) -> GatewayProcess:
    with log.open("wb") as file:
        return GatewayProcess(environment, file)


def written(folder: Path) -> bytes:
    """Everything in the files of a folder."""
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


async def test_servers_are_providers_and_their_key_is_in_no_file(
    environment: dict[str, str], tmp_path: Path, migrated: Migrate
) -> None:
    async with OpenAIPeer(key=KEY) as vllm, OpenAIPeer(ids=["Qwen/Q"]) as lab:
        servers = {
            "vllm": {"urls": [vllm.url], "key_env": "THE_KEY"},
            "lab": {"urls": [lab.url]},
        }
        extra = {
            "GATEWAY_OPENAI": json.dumps(servers),
            "GATEWAY_LOG_LEVEL": "debug",
            "GATEWAY_PROVIDERS": "ollama",
            "GATEWAY_VIRTUAL_MODELS": '{"any": ["vllm/m", "lab/Qwen/Q"]}',
            "THE_KEY": KEY,
        }
        migrated(environment)
        gateway = await anyio.to_thread.run_sync(start, environment | extra, tmp_path / "log")
        async with httpx.AsyncClient(base_url=gateway.url, timeout=30, trust_env=False) as client:
            models = (await client.get("/api/v1/models")).json()["models"]
            assert {"vllm/m", "lab/Qwen/Q"} <= {model["id"] for model in models}
            reply = await client.post("/api/v1/generate", json=chat("vllm/m", "hi"))
            assert reply.json()["text"] == "You said: hi"
            query = {"query": "{ providers { name kind } }"}
            found = (await client.post("/graphql", json=query)).json()["data"]["providers"]
            kinds = {each["name"]: each["kind"] for each in found}
            assert kinds["vllm"] == kinds["lab"] == "openai"
            vllm.script_route(CHAT, vllm_error(500, f"the key {KEY} is odd"))
            reply = await client.post("/api/v1/generate", json=chat("any", "hi"))
            assert reply.json()["model"] == "lab/Qwen/Q"
            reply = await client.post("/api/v1/generate", json=chat("vllm/m", "hi"))
            assert reply.status_code == 500
            assert KEY not in reply.text
        await anyio.to_thread.run_sync(gateway.close)
    kept = written(tmp_path)
    assert b"[key] is odd" in kept
    assert KEY.encode() not in kept


def test_check_says_what_is_wrong_with_a_server(environment: dict[str, str]) -> None:
    servers = {"ollama": {"urls": [f"http://u:{KEY}@gpu"], "key": KEY}}
    done = run_gateway(environment | {"GATEWAY_OPENAI": json.dumps(servers)}, "check")
    assert done.returncode == 2
    assert "ollama.urls.0" in done.stderr + done.stdout
    assert KEY not in done.stderr + done.stdout
