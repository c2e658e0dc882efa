"""`gateway serve` as a user meets it: the demo model, both faces, the records, the signals."""

import json
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import psycopg

from gateway.demo import grammar
from tests.integration.process.conftest import GatewayProcess, chat, run_gateway

Serve = Callable[..., GatewayProcess]
Rows = Callable[[str], list[tuple[Any, ...]]]


def events_of(reply: httpx.Response) -> Iterator[tuple[str, dict[str, Any]]]:
    name = ""
    for line in reply.iter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


@contextmanager
def going_on(gateway: GatewayProcess) -> Iterator[Iterator[tuple[str, dict[str, Any]]]]:
    """A stream of a model that says much, and its events."""
    body = chat("huggingface/smol", "go on", temperature=0)
    with gateway.client.stream("POST", "/api/v1/stream", json=body) as reply:
        yield events_of(reply)


def wait_for_records(rows: Rows, query: str, count: int) -> list[tuple[Any, ...]]:
    """Read until the write-behind has arrived; the caller's assertions fail on what is missing."""
    for _ in range(2000):
        found = rows(query)
        if len(found) >= count:
            return found
        time.sleep(0.01)
    return rows(query)


def test_the_printed_curl_line_streams_the_demo_model_s_answer(serve: Serve) -> None:
    gateway = serve()
    [line] = [line for line in gateway.printed.splitlines() if "curl" in line]
    output = subprocess.run(
        shlex.split(line), capture_output=True, text=True, timeout=60, check=True
    ).stdout
    blocks = [block.splitlines() for block in output.strip().split("\n\n")]
    names = [line for block in blocks for line in block if line.startswith("event: ")]
    assert names[0] == "event: waiting"
    assert names.count("event: started") == names.count("event: finished") == 1
    assert names[-1] == "event: finished"
    data = [json.loads(block[-1].removeprefix("data: ")) for block in blocks if len(block) == 3]
    text = "".join(item.get("text", "") for item in data)
    assert grammar.is_answer("What is a gateway?", text)


def test_generate_returns_what_stream_streams(serve: Serve) -> None:
    gateway = serve()
    answer = gateway.generate("huggingface/demo", "What is a token?", temperature=0)
    with gateway.client.stream(
        "POST", "/api/v1/stream", json=chat("demo", "What is a token?", temperature=0)
    ) as reply:
        events = list(events_of(reply))
    text = "".join(data["text"] for name, data in events if name == "delta")
    assert answer["text"] == text
    assert answer["usage"] == events[-1][1]["usage"]
    assert answer["model"] == "huggingface/demo"


def test_openai_s_client_lists_chats_and_streams_the_demo(serve: Serve) -> None:
    gateway = serve()
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="x") as client:
        assert {model.id for model in client.models.list()} == {
            "huggingface/demo",
            "huggingface/smol",
        }
        question = [{"role": "user", "content": "What is a gateway?"}]
        answer = client.chat.completions.create(
            model="huggingface/demo",
            messages=question,  # type: ignore[arg-type]
            temperature=0,
        )
        streamed = client.chat.completions.create(
            model="demo",
            messages=question,  # type: ignore[arg-type]
            temperature=0,
            stream=True,
        )
        text = "".join(c.choices[0].delta.content or "" for c in streamed if c.choices)
    assert grammar.is_answer("What is a gateway?", answer.choices[0].message.content or "")
    assert text == answer.choices[0].message.content


def test_the_database_tells_what_happened(serve: Serve, rows: Rows) -> None:
    gateway = serve()
    gateway.generate("huggingface/smol", "hi", max_tokens=3)
    gateway.client.post("/api/v1/generate", json=chat("huggingface/none", "hi"))
    gateway.terminate()
    assert gateway.wait() == 0
    sessions = rows(
        "SELECT requested_model, provider, model, end_reason, error_code, completion_tokens, "
        "total_ms > 0 FROM stream_sessions ORDER BY opened_at"
    )
    assert sessions == [
        ("huggingface/smol", "huggingface", "smol", "length", None, 3, 1),
        ("huggingface/none", "huggingface", "none", "error", "model_not_found", 0, 1),
    ]
    assert dict(rows("SELECT name, state FROM providers")) == {
        "huggingface": "UP",
        "ollama": "DOWN",
    }
    assert dict(rows("SELECT model, state FROM models")) == {
        "demo": "NOT_LOADED",
        "smol": "NOT_LOADED",
    }


def test_a_loaded_model_is_loaded_in_every_listing(serve: Serve, rows: Rows) -> None:
    gateway = serve()
    gateway.generate("huggingface/smol", "hi", max_tokens=1)
    listing = gateway.client.get("/api/v1/models", params={"state": "LOADED"}).json()
    assert [model["id"] for model in listing["models"]] == ["huggingface/smol"]
    query = "{ availableModels(filter: {states: [LOADED]}) { models { id } } }"
    reply = gateway.client.post("/graphql", json={"query": query}).json()
    assert reply["data"]["availableModels"]["models"] == [{"id": "huggingface/smol"}]
    found = wait_for_records(rows, "SELECT model FROM models WHERE state = 'LOADED'", 1)
    assert found == [("smol",)]


def test_leaving_stops_the_model_and_the_record_says_cancelled(serve: Serve, rows: Rows) -> None:
    gateway = serve()
    gateway.generate("huggingface/smol", "hi", max_tokens=1)
    with going_on(gateway) as events:
        for name, _ in events:
            if name == "delta":
                break
    query = (
        "SELECT completion_tokens, prompt_tokens FROM stream_sessions "
        "WHERE end_reason = 'cancelled'"
    )
    [(completion, prompt)] = wait_for_records(rows, query, 1)
    assert 0 < completion < 900
    assert prompt > 0


def test_kill_9_in_mid_stream_leaves_an_interrupted_record_after_the_next_start(
    serve: Serve, rows: Rows
) -> None:
    gateway = serve(GATEWAY_STREAM_BUFFER_EVENTS="4")
    with going_on(gateway) as events:
        for name, _ in events:
            if name == "started":
                gateway.kill()
                break
    assert rows("SELECT end_reason FROM stream_sessions") == [(None,)]
    again = serve()
    assert rows("SELECT end_reason, provider, model FROM stream_sessions") == [
        ("interrupted", "huggingface", "smol")
    ]
    again.generate("huggingface/smol", "hi", max_tokens=1)


def test_sigterm_ends_every_stream_with_a_terminal_event(serve: Serve, rows: Rows) -> None:
    gateway = serve(GATEWAY_DRAIN_GRACE_S="0", GATEWAY_STREAM_BUFFER_EVENTS="4")
    with going_on(gateway) as events:
        seen = []
        for name, data in events:
            seen.append((name, data))
            if name == "started":
                gateway.terminate()
    assert gateway.wait() == 0
    name, data = seen[-1]
    # The model may have been quicker than the signal; a cut without a word is what may not be.
    assert (name, data.get("reason")) == ("finished", "length") or (
        name == "failed" and data["code"] == "shutting_down"
    )
    [(end, code)] = rows("SELECT end_reason, error_code FROM stream_sessions")
    assert (end, code) in {("error", "shutting_down"), ("length", None)}


def test_postgresql_keeps_the_records_as_well(serve: Serve, postgres_url: str) -> None:
    gateway = serve(GATEWAY_DATABASE_URL=postgres_url)
    gateway.generate("huggingface/smol", "hi", max_tokens=2)
    gateway.terminate()
    assert gateway.wait() == 0
    with psycopg.connect(postgres_url) as connection:
        found = connection.execute("SELECT model, end_reason FROM stream_sessions").fetchall()
    assert found == [("smol", "length")]


def test_models_list_shows_the_models_and_who_does_not_answer(serve: Serve) -> None:
    gateway = serve()
    port = gateway.url.rpartition(":")[2]
    listed = run_gateway(gateway.environment | {"GATEWAY_PORT": port}, "models", "list")
    assert listed.returncode == 0
    assert "huggingface/demo" in listed.stdout
    assert "ollama: " in listed.stderr
    as_json = run_gateway(gateway.environment | {"GATEWAY_PORT": port}, "models", "list", "--json")
    assert {m["id"] for m in json.loads(as_json.stdout)["models"]} >= {"huggingface/smol"}


def test_a_second_gateway_of_the_same_name_is_refused_and_disturbs_nothing(
    serve: Serve, rows: Rows
) -> None:
    gateway = serve(GATEWAY_STREAM_BUFFER_EVENTS="4")
    with going_on(gateway) as events:
        for name, _ in events:
            if name == "started":
                break
        second = run_gateway(gateway.environment, "serve")
        assert second.returncode == 2
        assert "GATEWAY_NODE" in second.stderr
    assert "interrupted" not in {end for (end,) in rows("SELECT end_reason FROM stream_sessions")}


def test_a_second_signal_ends_the_drain_at_once(serve: Serve) -> None:
    gateway = serve(GATEWAY_DRAIN_GRACE_S="3600", GATEWAY_STREAM_BUFFER_EVENTS="4")
    with going_on(gateway) as events:
        seen = []
        for name, data in events:
            seen.append((name, data))
            if name == "started":
                gateway.terminate()
                while gateway.client.get("/health/ready").status_code == 200:
                    time.sleep(0.05)
                gateway.terminate()
    assert gateway.wait() == 0
    assert seen[-1][0] in ("failed", "finished")
