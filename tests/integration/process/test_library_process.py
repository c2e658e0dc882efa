"""A stranger looks after the models on the disk, over HTTP and with the command."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.hub_folders import put_cached, put_partial
from tests.integration.process.conftest import GatewayProcess, chat, run_gateway
from tests.tiny_models import build_model

Serve = Callable[..., GatewayProcess]
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def models_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("library-models")
    build_model(folder / "smol")
    return folder


CONFIG = "/api/v1/models/config"


@pytest.fixture
def models(environment: dict[str, str], models_folder: Path, tmp_path: Path) -> Path:
    """A models folder of one test alone."""
    shutil.copytree(models_folder, tmp_path / "models")
    environment["HF_MODEL_PATH"] = str(tmp_path / "models")
    return tmp_path / "models"


@pytest.fixture
def gateway(serve: Serve, models: Path) -> GatewayProcess:
    return serve()


@pytest.fixture
def command(environment: dict[str, str], gateway: GatewayProcess) -> Command:
    """Run `gateway ...` against the served gateway; return exit code, stdout, stderr."""
    port = gateway.url.rpartition(":")[2]

    def run(*arguments: str) -> tuple[int, str, str]:
        done = run_gateway(environment | {"GATEWAY_PORT": port}, *arguments)
        return done.returncode, done.stdout, done.stderr

    return run


def post(gateway: GatewayProcess, verb: str, **body: Any) -> tuple[int, dict[str, Any]]:
    reply = gateway.client.post(f"/api/v1/models/{verb}", json=body)
    return reply.status_code, reply.json()


def entry(gateway: GatewayProcess, name: str) -> dict[str, Any]:
    found = gateway.client.get("/api/v1/models/available").json()
    [entry] = [each for each in found["local_models"] if each["id"] == name]
    return dict(entry)


def test_a_damaged_model_is_refused_with_the_reason_and_the_others_answer(
    gateway: GatewayProcess, models: Path
) -> None:
    sound = (models / "smol/model.safetensors").read_bytes()
    header_end = 8 + int.from_bytes(sound[:8], "little")
    shutil.copytree(models / "smol", models / "torn")
    refused = 0
    for position in [*range(8), *range(8, header_end, 97)]:
        flipped = bytearray(sound)
        flipped[position] ^= 0x41
        (models / "torn/model.safetensors").write_bytes(flipped)
        reply = gateway.client.post("/api/v1/generate", json=chat("huggingface/torn", "Hi"))
        if reply.status_code != 200:  # a name may be flipped and the file still be sound
            refused += reply.json()["error"]["code"] == "model_corrupt"
            # 503: such a one failed its load so often that it is left alone for a while
            assert reply.status_code in (422, 500, 503), reply.text
    assert refused > 8
    (models / "torn/model.safetensors").write_bytes(sound[:-1])
    status, error = post(gateway, "load", model="huggingface/torn")
    assert (status, error["error"]["code"]) == (422, "model_corrupt")
    assert "is cut off: 1 bytes" in error["error"]["message"]
    listed = gateway.client.get("/api/v1/models").json()["models"]
    [torn] = [model for model in listed if model["id"] == "huggingface/torn"]
    assert torn["metadata"]["verdict"] == "corrupt" and "is cut off" in torn["message"]
    assert gateway.generate("huggingface/smol", "Hi", max_tokens=2)["finish_reason"] == "length"
    (models / "torn/model.safetensors").write_bytes(sound)
    assert gateway.generate("huggingface/torn", "Hi", max_tokens=2)["finish_reason"] == "length"


def test_a_model_in_use_stays_and_an_idle_one_goes(gateway: GatewayProcess, models: Path) -> None:
    body = chat("huggingface/smol", "Hi", max_tokens=200)
    with gateway.client.stream("POST", "/api/v1/stream", json=body) as reply:
        lines = reply.iter_lines()
        while "event: delta" not in next(lines):
            pass
        status, error = post(gateway, "delete", model="huggingface/smol")
        assert (status, error["error"]["code"]) == (409, "model_in_use")
        assert "event: finished" in list(lines)
    assert entry(gateway, "huggingface/smol")["last_used"] is not None
    assert post(gateway, "delete", model="huggingface/smol")[0] == 200
    assert not (models / "smol").exists()
    assert gateway.client.post("/api/v1/generate", json=body).status_code == 404
    assert post(gateway, "delete", model="huggingface/demo")[0] == 403


def test_a_model_passes_a_load_test(gateway: GatewayProcess, command: Command) -> None:
    code, out, _ = command("models", "verify", "smol", "--check", "load")
    assert (code, out) == (0, "huggingface/smol: ok by load\n")
    code, out, _ = command("models", "verify", "smol", "--json")
    found = json.loads(out)
    assert found["verification"]["check"] == "load" and not found["fresh"]


def test_the_command_tells_what_is_wrong_and_cleans_up(
    gateway: GatewayProcess, models: Path, environment: dict[str, str], command: Command
) -> None:
    cache = Path(environment["HF_HOME"]) / "hub"
    put_cached(cache, "o/old")
    blob = (put_cached(cache, "o/bad") / "model.safetensors").resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"\xff")
    code, out, err = command("models", "verify", "o/bad")
    assert code == 3 and "corrupt by checksums" in out and "checksum" in out, err
    code, out, _ = command("models", "files")
    [line] = [line for line in out.splitlines() if "o/bad" in line]
    assert code == 0 and "corrupt" in line
    assert command("models", "clean")[0] == 2
    left = put_partial(cache, "o/failed", size=7)
    code, out, _ = command("models", "clean", "--unfinished-days", "1", "--dry-run")
    assert code == 0 and "what is left of o/failed would go: 7 bytes" in out and left.exists()
    code, out, _ = command("models", "clean", "--unfinished-days", "1", "--yes")
    assert code == 0 and "what is left of o/failed went: 7 bytes" in out and not left.exists()
    code, out, _ = command("models", "clean", "--max-bytes", "0", "--dry-run")
    assert code == 0 and "huggingface/o/old would go (size)" in out
    assert command("models", "rm", "o/bad")[0] == 1  # nobody says yes
    assert command("models", "rm", "o/bad", "--yes")[0] == 0
    code, out, _ = command("models", "clean", "--max-bytes", "0", "--yes", "--json")
    assert [each["model"] for each in json.loads(out)["removed"]] == ["huggingface/o/old"]
    assert list(cache.glob("models--*")) == []
    code, _, err = command("models", "rm", "o/bad", "--yes")
    assert code == 1 and "o/bad" in err


def test_collections_and_configs_outlive_the_gateway_and_move(
    serve: Serve, gateway: GatewayProcess, command: Command, tmp_path: Path
) -> None:
    code, out, err = command("collections", "create", "small talk", "--model", "huggingface/smol")
    assert code == 0 and "small talk" in out, err
    assert command("collections", "add", "small talk", "ollama/b:latest")[0] == 0
    assert command("collections", "create", "small talk")[0] == 1
    assert command("collections", "rename", "small talk", "tiny")[0] == 0
    code, out, _ = command("collections", "list", "--json")
    [collection] = json.loads(out)["collections"]
    assert (collection["name"], collection["models"][1]) == ("tiny", "ollama/b:latest")
    assert command("routes", "set", "short", "huggingface/smol")[0] == 0
    set_to = ("config", "huggingface/smol", "--set", "temperature=0.5", "--set", "pinned=true")
    assert command("models", *set_to)[0] == 0
    exported = command("collections", "export")[1]
    [config] = json.loads(exported)["configs"]
    assert config["model"] == "huggingface/smol" and config["config"]["pinned"]
    asked = {"model": "huggingface/smol"}
    assert config["config"] == gateway.client.get(CONFIG, params=asked).json()["config"]
    gateway.close()
    again = serve()
    shown = again.client.get(CONFIG, params=asked).json()
    assert shown["config"]["defaults"] == {"temperature": 0.5} and shown["config"]["pinned"]
    again.close()
    other = serve(GATEWAY_DATA_DIR=str(tmp_path / "other"))
    (tmp_path / "export.json").write_text(exported)
    port = {"GATEWAY_PORT": other.url.rpartition(":")[2]}
    arguments = ("collections", "import", str(tmp_path / "export.json"))
    done = run_gateway(other.environment | port, *arguments)
    assert done.returncode == 0, done.stderr
    said = ["creates tiny", "configures huggingface/smol", "routes short"]
    assert done.stdout.splitlines()[:3] == said
    assert run_gateway(other.environment | port, "collections", "export").stdout == exported
    assert "huggingface/smol" in run_gateway(other.environment | port, "routes", "list").stdout
