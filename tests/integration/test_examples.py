"""The examples, run as their README says, against a served gateway."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.demo import grammar
from tests.integration.process.conftest import DEAD_OLLAMA, GatewayProcess, run_gateway

EXAMPLES = Path(__file__).parents[2] / "examples"
QUESTION = "What is a gateway?"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """One gateway for all examples, with the demo model."""
    environment = prepare(tmp_path_factory.mktemp("examples"))
    process = GatewayProcess(environment)
    yield process
    process.close()


def prepare(folder: Path) -> dict[str, str]:
    """Return the environment of a gateway whose database is there."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("GATEWAY_", "HF_", "OLLAMA"))}
    environment = clean | {
        "GATEWAY_DATA_DIR": str(folder / "data"),
        "GATEWAY_PORT": "0",
        "GATEWAY_NODE": "examples",
        "GATEWAY_DRAIN_GRACE_S": "0.2",
        "HF_MODEL_PATH": str(folder / "models"),
        "HF_HOME": str(folder / "hf"),
        "OLLAMA_HOST": DEAD_OLLAMA,
    }
    upgraded = run_gateway(environment, "db", "upgrade")
    assert upgraded.returncode == 0, upgraded.stderr
    return environment


def run_example(gateway: GatewayProcess, *command: str) -> str:
    environment = gateway.environment | {"GATEWAY_URL": gateway.url}
    done = subprocess.run(
        command, cwd=EXAMPLES, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_curl_shows_health_models_and_every_way_to_ask(gateway: GatewayProcess) -> None:
    output = run_example(gateway, "./curl.sh")
    sections = [part.split("\n", 1)[1].strip() for part in output.split("== ")[1:]]
    health, models, stream, whole, chat, chunks = sections
    assert json.loads(health)["status"] == "ready"
    listing = json.loads(models)
    assert [model["id"] for model in listing["models"]] == ["huggingface/demo"]
    assert [fault["provider"] for fault in listing["provider_errors"]] == ["ollama"]
    names = re.findall(r"^event: (\w+)$", stream, re.MULTILINE)
    assert names[-1] == "finished" and {"started", "delta"} < set(names)
    answer = json.loads(whole)
    assert answer["finish_reason"] == "length" and answer["usage"]["completion_tokens"] == 20
    completion = json.loads(chat)
    assert completion["choices"][0]["message"]["content"]
    assert completion["usage"]["completion_tokens"] == 20
    *frames, done = [line.removeprefix("data: ") for line in chunks.split("\n\n")]
    assert done == "[DONE]"
    assert json.loads(frames[-1])["usage"]["completion_tokens"] == 20


def test_graphql_lists_the_demo_model_and_says_why_ollama_is_missing(
    gateway: GatewayProcess,
) -> None:
    found = json.loads(run_example(gateway, "./graphql.sh"))["data"]["availableModels"]
    assert [model["id"] for model in found["models"]] == ["huggingface/demo"]
    assert [error["code"] for error in found["providerErrors"]] == ["provider_unavailable"]


def test_openai_python_lists_chats_streams_and_shows_an_error(gateway: GatewayProcess) -> None:
    lines = run_example(gateway, sys.executable, "openai_python.py").splitlines()
    shown = dict(line.split(": ", 1) for line in lines)
    assert shown["models"] == "huggingface/demo"
    assert grammar.is_answer(QUESTION, shown["answer"])
    assert grammar.is_answer(QUESTION, shown["stream"])
    assert re.fullmatch(r"[1-9]\d* \+ [1-9]\d* tokens", shown["usage"])
    assert shown["error"].startswith("404 model_not_found: There is no model 'huggingface/dem'.")
    assert re.fullmatch(r"[0-9a-f]{32}", shown["request id"])


def test_langchain_streams_an_answer_with_its_usage(gateway: GatewayProcess) -> None:
    answer, usage = run_example(gateway, sys.executable, "langchain_chat.py").splitlines()
    assert grammar.is_answer(QUESTION, answer)
    assert re.fullmatch(r"usage: [1-9]\d* tokens", usage)


def test_every_example_sends_the_key_that_the_environment_has(tmp_path: Path) -> None:
    environment = prepare(tmp_path)
    made = run_gateway(environment, "keys", "create", "examples", "--scope", "infer")
    gateway = GatewayProcess(environment | {"GATEWAY_API_KEY": made.stdout.strip()})
    try:
        assert gateway.client.get("/v1/models").status_code == 401
        for command in (["./curl.sh"], ["./graphql.sh"]):
            assert "huggingface/demo" in run_example(gateway, *command)
        for script in ("openai_python.py", "langchain_chat.py"):
            assert "usage: " in run_example(gateway, sys.executable, script)
    finally:
        gateway.close()


def test_the_readme_names_every_example() -> None:
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    files = {file.name for file in EXAMPLES.iterdir() if file.is_file()} - {"README.md"}
    assert set(re.findall(r"\[([\w.]+)\]\(\1\)", readme)) == files
