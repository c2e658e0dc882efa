"""A stranger loads, unloads and configures models, over HTTP and with the command."""

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.process.conftest import GatewayProcess, chat, run_gateway

Serve = Callable[..., GatewayProcess]
SMOL = "huggingface/smol"
"""The full name: a bare one is a guess while a busy machine has not listed its models yet."""


@pytest.fixture
def gateway(serve: Serve) -> GatewayProcess:
    return serve()


@pytest.fixture
def command(environment: dict[str, str], gateway: GatewayProcess) -> Callable[..., Any]:
    """Run `gateway models ...` against the served gateway; return exit code, stdout, stderr."""
    port = gateway.url.rpartition(":")[2]

    def run(*arguments: str) -> tuple[int, str, str]:
        done = run_gateway(environment | {"GATEWAY_PORT": port}, "models", *arguments)
        return done.returncode, done.stdout, done.stderr

    return run


def post(gateway: GatewayProcess, verb: str, **body: Any) -> httpx.Response:
    return gateway.client.post(f"/api/v1/models/{verb}", json=body)


def status(gateway: GatewayProcess, model: str) -> dict[str, Any]:
    reply = gateway.client.get("/api/v1/models/status", params={"model": model})
    assert reply.status_code == 200
    found: dict[str, Any] = reply.json()
    return found


def until(gateway: GatewayProcess, model: str, state: str) -> dict[str, Any]:
    while (found := status(gateway, model))["state"] != state:
        assert found["state"] in ("LOADING", "UNLOADING"), found
        time.sleep(0.02)
    return found


def test_a_model_goes_up_and_down_over_http(gateway: GatewayProcess) -> None:
    plan = post(gateway, "load", model=SMOL, dry_run=True)
    assert plan.status_code == 200
    assert plan.json()["fits"] and not plan.json()["already_loaded"]
    assert status(gateway, SMOL)["state"] == "NOT_LOADED"

    begun = post(gateway, "load", model=SMOL, keep_alive="10m")
    assert (begun.status_code, begun.json()["state"]) == (202, "LOADING")
    loaded = until(gateway, SMOL, "LOADED")
    while loaded["expires_in_s"] is None:  # the load itself still uses it, for a moment
        loaded = status(gateway, SMOL)
    assert loaded["model"] == SMOL and loaded["device"] == "cpu" and loaded["batched"]
    assert 590 < loaded["expires_in_s"] <= 600
    assert 0 < loaded["memory_bytes"] <= plan.json()["need_bytes"]  # what the load takes at most

    again = post(gateway, "load", model=SMOL)
    assert (again.status_code, again.json()["state"]) == (200, "LOADED")
    listed = gateway.client.get("/api/v1/models/status").json()["models"]
    assert [each["model"] for each in listed] == [SMOL]

    gone = post(gateway, "unload", model=SMOL, wait=True)
    assert (gone.status_code, gone.json()["state"]) == (200, "NOT_LOADED")
    assert gone.json()["memory_bytes"] == 0
    assert post(gateway, "unload", model=SMOL, wait=True).status_code == 200


def test_generation_defaults_are_live_and_how_to_load_takes_a_reload(
    gateway: GatewayProcess,
) -> None:
    long = gateway.generate(SMOL, "Hello", max_tokens=20)
    assert long["usage"]["completion_tokens"] == 20
    url = "/api/v1/models/config"
    put = gateway.client.put(url, params={"model": SMOL}, json={"defaults": {"max_tokens": 3}})
    assert put.json()["requires_reload"] is False
    short = gateway.client.post("/api/v1/generate", json=chat(SMOL, "Hello"))
    assert short.json()["usage"]["completion_tokens"] == 3
    assert gateway.generate(SMOL, "Hello", max_tokens=5)["usage"]["completion_tokens"] == 5

    load = {"load": {"context_length": 40}, "keep_alive": 60}
    put = gateway.client.put(url, params={"model": SMOL}, json=load)
    assert put.json()["requires_reload"] is True
    assert put.json()["config"]["defaults"] == {"max_tokens": 3}
    assert post(gateway, "load", model=SMOL, wait=True).status_code == 200
    assert status(gateway, SMOL)["requires_reload"] is False
    filled = gateway.generate(SMOL, "Hello", max_tokens=1000)
    assert sum(filled["usage"].values()) == 40
    put = gateway.client.put(
        url, params={"model": SMOL}, json={"defaults": {}, "load": {}, "keep_alive": None}
    )
    assert gateway.client.get(url, params={"model": SMOL}).json() == put.json()
    assert put.json()["config"]["defaults"] == {} and put.json()["config"]["keep_alive"] is None


def test_a_forced_unload_ends_a_stream_with_its_code(gateway: GatewayProcess) -> None:
    body = chat(SMOL, "Hello", max_tokens=900)
    with gateway.client.stream("POST", "/api/v1/stream", json=body) as reply:
        lines = reply.iter_lines()
        assert any(line == "event: delta" for line in lines)
        unload = threading.Thread(
            target=lambda: post(gateway, "unload", model=SMOL, force=True, wait=True)
        )
        unload.start()
        rest = list(lines)
        unload.join()
    assert "event: failed" in rest
    [failure] = [line for line in rest if "model_unloaded" in line]
    assert json.loads(failure.removeprefix("data: "))["retryable"] is True
    assert status(gateway, SMOL)["state"] == "NOT_LOADED"


WRONG = [
    ("load", {"model": SMOL, "pined": True}, "pined"),
    ("load", {"model": SMOL, "config": {"devise": "cpu"}}, "devise"),
    ("load", {"model": SMOL, "config": {"dtype": "float64"}}, "config.dtype"),
    ("load", {"model": SMOL, "config": {"device": "tpu"}}, "config.device"),
    ("load", {"model": SMOL, "config": {"context_length": 0}}, "context_length"),
    ("load", {"model": SMOL, "config": {"context_length": 4096}}, "1024"),
    ("load", {"model": SMOL, "keep_alive": "soon"}, "keep_alive"),
    ("load", {}, "model"),
    ("unload", {"model": SMOL, "forced": True}, "forced"),
]


def test_what_is_written_wrong_is_named(gateway: GatewayProcess) -> None:
    for path, body, said in WRONG:
        reply = post(gateway, path, **body)
        assert reply.status_code == 400
        assert reply.json()["error"]["code"] == "invalid_request"
        assert said in reply.json()["error"]["message"]


def test_a_config_is_checked_like_the_options_of_a_request(gateway: GatewayProcess) -> None:
    url = "/api/v1/models/config?model=smol"
    for body, said in (
        ({"defaults": {"temprature": 1}}, "temprature"),
        ({"defaults": {"temperature": 3}}, "0 to 2"),
        ({"default": {}}, "default"),
    ):
        reply = gateway.client.put(url, json=body)
        assert reply.status_code == 400 and said in reply.json()["error"]["message"]
    assert gateway.client.get("/api/v1/models/config").status_code == 400
    for path in ("config", "status"):
        missing = gateway.client.get(f"/api/v1/models/{path}?model=huggingface/nobody")
        assert missing.json()["error"]["code"] == "model_not_found"


def test_what_cannot_be_loaded_says_why_at_once_or_in_its_status(
    serve: Serve, models_folder: Path, tmp_path: Path
) -> None:
    models = tmp_path / "models"  # the folder of the session stays as it is
    shutil.copytree(models_folder, models)
    for name in ("broken", "torn"):
        shutil.copytree(models / "smol", models / name)
    config = json.loads((models / "broken/config.json").read_text())
    (models / "broken/config.json").write_text(json.dumps({**config, "hidden_size": 48}))
    (models / "torn/model.safetensors").write_bytes(b"\xff" * 64)
    gateway = serve(GATEWAY_MEMORY_BUDGET_BYTES="1000", HF_MODEL_PATH=str(models))
    reply = post(gateway, "load", model=SMOL)
    assert (reply.status_code, reply.json()["error"]["code"]) == (422, "model_too_large")
    assert "1000 bytes" in reply.json()["error"]["message"]
    gateway.close()
    gateway = serve(HF_MODEL_PATH=str(models))
    assert post(gateway, "load", model=SMOL, config={"device": "cuda:7"}).status_code == 500
    assert post(gateway, "load", model="huggingface/broken").status_code == 202
    failed = until(gateway, "huggingface/broken", "FAILED")
    assert failed["error"]["code"] == "model_load_failed"
    torn = post(gateway, "load", model="huggingface/torn")
    assert (torn.status_code, torn.json()["error"]["code"]) == (422, "model_corrupt")
    assert post(gateway, "load", model="huggingface/nobody").status_code == 404


def test_a_preload_is_there_without_being_asked_for_and_a_failing_one_is_seen(serve: Serve) -> None:
    gateway = serve(GATEWAY_HF_PRELOAD="smol,nobody/there")
    until(gateway, SMOL, "LOADED")
    listed = gateway.client.get("/api/v1/models/status").json()["models"]
    [lost] = [each for each in listed if each["model"] == "huggingface/nobody/there"]
    assert lost["state"] == "FAILED" and lost["error"]["code"] == "model_not_found"


def test_the_command_loads_configures_shows_and_unloads(command: Callable[..., Any]) -> None:
    code, out, _ = command("load", SMOL, "--dry-run")
    assert code == 0 and "needs" in out
    code, out, _ = command("load", SMOL, "--pin", "--dtype", "float32")
    assert code == 0 and "LOADED" in out and "pinned" in out
    code, out, _ = command("status", "--json")
    [shown] = json.loads(out)["models"]
    assert (shown["model"], shown["pinned"], shown["config"]["load"]["dtype"]) == (
        SMOL,
        True,
        "float32",
    )
    before = shown["memory_bytes"]
    code, out, _ = command("load", SMOL, "--dtype", "bfloat16", "--json")
    shown = json.loads(out)  # of the new one, not of the one that is to go
    assert (code, shown["state"], shown["config"]["load"]["dtype"]) == (0, "LOADED", "bfloat16")
    assert shown["memory_bytes"] < before
    assert command("load", SMOL, "--dtype", "float32")[0] == 0
    code, out, err = command(
        "config", SMOL, "--set", "temperature=0.5", "--set", "dtype=bfloat16", "--unset", "pinned"
    )
    assert code == 0 and '"temperature": 0.5' in out and "load it again" in err
    code, out, _ = command("config", SMOL, "--unset", "temperature", "--json")
    config = json.loads(out)["config"]
    assert (config["defaults"], config["pinned"], config["load"]["dtype"]) == (
        {},
        False,
        "bfloat16",
    )
    code, out, _ = command("unload", SMOL)
    assert code == 0 and "NOT_LOADED" in out


def test_the_command_clears_a_failure(environment: dict[str, str], serve: Serve) -> None:
    gateway = serve(GATEWAY_HF_PRELOAD="nobody/there")
    lost = "huggingface/nobody/there"
    until(gateway, SMOL, "NOT_LOADED")
    while status(gateway, lost)["state"] != "FAILED":
        time.sleep(0.05)
    there = environment | {"GATEWAY_PORT": gateway.url.rpartition(":")[2]}
    done = run_gateway(there, "models", "unload", lost)
    assert (done.returncode, "NOT_LOADED" in done.stdout) == (0, True)
    assert "failure is cleared" in done.stderr and "no model" in done.stderr
    assert status(gateway, lost)["error"] is None
    again = run_gateway(there, "models", "unload", lost)
    assert again.returncode == 0 and "cleared" not in again.stderr


def test_the_command_exits_1_for_what_fails_and_2_for_what_is_written_wrong(
    command: Callable[..., Any],
) -> None:
    code, _, err = command("load", SMOL, "--device", "cuda:7")
    assert code == 1 and "cuda:7" in err and "Traceback" not in err
    code, _, err = command("load", "huggingface/nobody")
    assert code == 1 and "There is no model" in err
    code, _, err = command("config", SMOL, "--set", "temperature")
    assert code == 2 and "KEY=VALUE" in err
    code, _, err = command("config", SMOL, "--set", "temprature=1")
    assert code == 1 and "temprature" in err
    assert command("load")[0] == 2
