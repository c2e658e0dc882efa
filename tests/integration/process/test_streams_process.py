"""Streams of a served gateway: their ends at SIGTERM, detached ones, and tokens in no log."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

from tests.integration.process.conftest import GatewayProcess, Migrate, chat

Serve = Callable[..., GatewayProcess]
Rows = Callable[[str], list[tuple[Any, ...]]]

GO_ON = chat("huggingface/smol", "go on", temperature=0)
GENERATE = """subscription($input: GenerateInput!) {
  generate(input: $input) { __typename ... on FinishedEvent { end } }
}"""
HOT = {"GATEWAY_DRAIN_GRACE_S": "3600", "GATEWAY_STREAM_BUFFER_EVENTS": "4"}


class Reader(threading.Thread):
    """Reads one stream slowly enough to be in its midst: a step at a time, as it is let."""

    def __init__(self, lines: Callable[[], Iterator[str]]) -> None:
        super().__init__(daemon=True)
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.last = ""
        self._lines = lines

    def run(self) -> None:
        for line in self._lines():
            self.last = line
            if "started" in line or "StartedEvent" in line:
                self.begun.set()
                self.go_on.wait(30)


def read_native(gateway: GatewayProcess) -> Iterator[str]:
    with gateway.client.stream("POST", "/api/v1/stream", json=GO_ON) as reply:
        yield from (line for line in reply.iter_lines() if line.startswith("event: "))


def read_openai(gateway: GatewayProcess) -> Iterator[str]:
    body = {**GO_ON, "stream": True}
    with gateway.client.stream("POST", "/v1/chat/completions", json=body) as reply:
        yield "started"
        yield from (line for line in reply.iter_lines() if line.startswith("data: "))


def read_socket(gateway: GatewayProcess) -> Iterator[str]:
    url = gateway.url.replace("http:", "ws:") + "/graphql"
    asked = {"model": "huggingface/smol", "prompt": "go on", "options": {"temperature": 0}}
    payload = {"query": GENERATE, "variables": {"input": asked}}
    with connect(url, subprotocols=["graphql-transport-ws"], proxy=None) as socket:  # type: ignore[list-item]
        socket.send(json.dumps({"type": "connection_init"}))
        socket.send(json.dumps({"id": "a", "type": "subscribe", "payload": payload}))
        for message in socket:
            text = str(message)
            if '"next"' in text or '"error"' in text:
                yield text


def test_sigterm_twice_gives_every_hot_stream_its_end_and_its_record(
    serve: Serve, rows: Rows
) -> None:
    gateway = serve(**HOT)
    gateway.generate("huggingface/smol", "hi", max_tokens=1)
    ways = [read_native, read_openai, read_socket] * 3
    readers = [Reader(lambda read=read: read(gateway)) for read in ways]  # type: ignore[misc]
    for reader in readers:
        reader.start()
    for reader in readers:
        assert reader.begun.wait(30)
    opened = gateway.client.post("/api/v1/streams", json=GO_ON)
    assert opened.status_code == 202
    gateway.terminate()
    while gateway.client.get("/health/ready").status_code == 200:
        time.sleep(0.05)
    gateway.terminate()
    for reader in readers:
        reader.go_on.set()
    assert gateway.wait() == 0
    ends = ("failed", "finished", "shutting_down", "[DONE]", "FinishedEvent")
    for reader in readers:
        reader.join(30)
        assert not reader.is_alive()
        assert any(end in reader.last for end in ends), reader.last
    recorded = rows("SELECT end_reason, error_code FROM stream_sessions")
    assert len(recorded) == 11
    assert ("error", "shutting_down") in recorded
    assert set(recorded) <= {("error", "shutting_down"), ("length", None), ("stop", None)}


def test_a_token_reads_its_stream_and_is_in_no_log(
    environment: dict[str, str], tmp_path: Path, migrated: Migrate
) -> None:
    chosen = environment | {"GATEWAY_LOG_LEVEL": "debug"}
    migrated(chosen)
    file = tmp_path / "log"
    with file.open("wb") as log:
        gateway = GatewayProcess(chosen, log)
        keyed = {"authorization": "Bearer ours"}
        asked = chat("huggingface/smol", "hi", max_tokens=3)
        told = gateway.client.post("/api/v1/streams", json=asked, headers=keyed).json()
        token = {"token": told["token"]}
        read = gateway.client.get(told["url"], params=token)
        gateway.client.get("/api/v1/streams/nobody", params=token)
        gateway.close()
    assert "event: finished" in read.text
    logged = file.read_text()
    assert told["stream_id"] in logged
    assert told["token"].partition(".")[2] not in logged


def test_a_detached_stream_is_whole_though_its_client_died(serve: Serve, rows: Rows) -> None:
    gateway = serve()
    body = {**chat("huggingface/smol", "go on", temperature=0, max_tokens=200), "detached": True}
    whole = gateway.generate("huggingface/smol", "go on", temperature=0, max_tokens=200)
    with gateway.client.stream("POST", "/api/v1/stream", json=body) as reply:
        path = f"/api/v1/streams/{reply.headers['x-stream-id']}"
    with gateway.client.stream("GET", path) as reply:
        data = [
            json.loads(line.removeprefix("data: "))
            for line in reply.iter_lines()
            if line.startswith("data: ")
        ]
    assert "".join(item.get("text", "") for item in data) == whole["text"]
    assert data[-1]["reason"] == whole["finish_reason"]
    gateway.terminate()
    assert gateway.wait() == 0
    assert "cancelled" not in {end for (end,) in rows("SELECT end_reason FROM stream_sessions")}
