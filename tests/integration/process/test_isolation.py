"""`gateway serve` with a process for each model: what kill -9 does to whom, over real HTTP."""

import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.process.conftest import GatewayProcess, chat
from tests.integration.process.test_serving import events_of
from tests.tiny_models import build_encoder, build_model

Serve = Callable[..., GatewayProcess]
Event = tuple[str, dict[str, Any]]


@pytest.fixture(scope="session")
def models_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`smol`, `long`, whose context takes prompts that are seconds of work, and `bert`."""
    folder = tmp_path_factory.mktemp("isolated-models")
    build_model(folder / "smol", max_position_embeddings=1024)
    build_model(folder / "long", max_position_embeddings=2**16)
    build_encoder(folder / "bert", pooling={"pooling_mode_mean_tokens": True})
    return folder


@pytest.fixture
def isolated(serve: Serve) -> GatewayProcess:
    return serve(GATEWAY_HF_ISOLATION="process", GATEWAY_STREAM_BUFFER_EVENTS="4")


def children_of(gateway: GatewayProcess) -> list[int]:
    """Return the processes of the gateway's models."""
    found: list[int] = []
    for task in Path(f"/proc/{gateway.pid}/task").iterdir():
        with suppress(FileNotFoundError):  # a thread that has just ended
            found += map(int, (task / "children").read_text().split())
    return found


def wait_for_child(gateway: GatewayProcess) -> int:
    deadline = time.monotonic() + 20
    while not (found := children_of(gateway)):
        assert time.monotonic() < deadline, "no process was started"
    return found[0]


def has_ended(pid: int, within_s: float) -> bool:
    """Wait until a process that is not ours has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], within_s)[0])
    finally:
        os.close(descriptor)


def stream(gateway: GatewayProcess, model: str, text: str) -> Any:
    body = chat(model, text, temperature=0)
    return gateway.client.stream("POST", "/api/v1/stream", json=body)


def kill_at(
    gateway: GatewayProcess, reply: httpx.Response, is_moment: Callable[[Event], bool]
) -> Event:
    """Read to the moment, kill the model's process, and return how the stream ended: at once."""
    events: Iterator[Event] = events_of(reply)
    for event in events:
        if is_moment(event):
            break
    child = wait_for_child(gateway)
    killed_at = time.monotonic()
    os.kill(child, signal.SIGKILL)
    last = list(events)[-1]
    assert time.monotonic() - killed_at < 5
    return last


def test_kill_9_in_each_phase_costs_the_streams_of_that_model_and_nothing_else(
    isolated: GatewayProcess,
) -> None:
    gateway = isolated
    with stream(gateway, "huggingface/long", "hi") as reply:
        loading = kill_at(gateway, reply, lambda e: e[1].get("stage") == "loading")
    with stream(gateway, "huggingface/long", "x" * 40_000) as reply:
        prefill = kill_at(gateway, reply, lambda e: e[1].get("stage") == "prefill")
    with (
        stream(gateway, "huggingface/long", "one") as first,
        stream(gateway, "huggingface/long", "two") as second,
    ):
        others = events_of(second)
        assert any(name == "delta" for name, _ in others)
        decoding = kill_at(gateway, first, lambda e: e[0] == "delta")
        assert list(others)[-1][0] == "failed"
    assert [name for name, _ in (loading, prefill, decoding)] == ["failed"] * 3
    assert loading[1]["code"] == "model_load_failed"
    assert prefill[1]["code"] == decoding[1]["code"] == "engine_failed"
    assert all("killed by SIGKILL" in data["message"] for _, data in (loading, prefill, decoding))
    assert gateway.client.get("/health/ready").status_code == 200
    listing = gateway.client.get("/api/v1/models").json()["models"]
    assert {m["id"]: m["state"] for m in listing}["huggingface/long"] == "FAILED"
    assert gateway.generate("huggingface/long", "hi", max_tokens=3)["usage"]["completion_tokens"]
    gateway.terminate()
    assert gateway.wait() == 0


def test_an_answer_goes_on_after_kill_9_as_if_nothing_had_been(isolated: GatewayProcess) -> None:
    """F22: the model is loaded anew and goes on from its own tokens, drawn by the same chance."""
    body = chat("huggingface/long", "Tell", temperature=1.0, seed=11, max_tokens=400)
    whole = isolated.client.post("/api/v1/generate", json=body).json()
    body["continue_on_failure"] = True
    with isolated.client.stream("POST", "/api/v1/stream", json=body) as reply:
        events = events_of(reply)
        heard: list[Event] = []
        for event in events:
            heard.append(event)
            if len([name for name, _ in heard if name == "delta"]) == 20:
                break
        os.kill(wait_for_child(isolated), signal.SIGKILL)
        heard += events
    names = [name for name, _ in heard]
    assert names[-1] == "finished" and names.count("switched") == 1
    assert "".join(data.get("text", "") for name, data in heard if name == "delta") == whole["text"]
    usage = heard[-1][1]["usage"]
    assert usage["completion_tokens"] == whole["usage"]["completion_tokens"]
    # The second prompt has what was said of the answer, too.
    assert usage["prompt_tokens"] > 2 * whole["usage"]["prompt_tokens"]


def test_an_unload_by_force_ends_the_streams_and_the_process(isolated: GatewayProcess) -> None:
    gateway = isolated
    with stream(gateway, "huggingface/long", "go on") as reply:
        events = events_of(reply)
        assert any(name == "delta" for name, _ in events)
        [child] = children_of(gateway)
        body = {"model": "huggingface/long", "force": True, "wait": True}
        reply = gateway.client.post("/api/v1/models/unload", json=body)
        assert (reply.status_code, reply.json()["state"]) == (200, "NOT_LOADED")
        assert has_ended(child, within_s=0)
        name, data = list(events)[-1]
    assert (name, data["code"]) == ("failed", "model_unloaded")
    assert children_of(gateway) == []


def test_a_model_that_embeds_has_a_process_too(isolated: GatewayProcess) -> None:
    gateway = isolated
    body = {"model": "huggingface/bert", "input": ["a gateway", "embeds texts"]}
    reply = gateway.client.post("/v1/embeddings", json=body)
    assert reply.status_code == 200, reply.text
    [first, second] = (entry["embedding"] for entry in reply.json()["data"])
    assert len(first) == len(second) == 32
    assert first != second
    [child] = children_of(gateway)
    os.kill(child, signal.SIGKILL)
    assert has_ended(child, within_s=5)
    again = gateway.client.post("/v1/embeddings", json=body).json()
    assert again["data"][0]["embedding"] == pytest.approx(first)
    assert children_of(gateway) != [child]


def test_models_live_and_die_apart_and_none_outlives_the_gateway(
    isolated: GatewayProcess,
) -> None:
    gateway = isolated
    gateway.generate("huggingface/smol", "hi", max_tokens=1)
    [smol] = children_of(gateway)
    gateway.generate("huggingface/long", "hi", max_tokens=1)
    [long] = set(children_of(gateway)) - {smol}
    with stream(gateway, "huggingface/long", "go on") as reply:
        events = events_of(reply)
        assert any(name == "delta" for name, _ in events)
        os.kill(smol, signal.SIGKILL)
        for _ in range(300):
            assert next(events)[0] == "delta"
        gateway.kill()
        assert has_ended(long, within_s=5)
    assert has_ended(smol, within_s=5)


def test_a_signal_to_the_whole_group_lets_streams_finish_within_the_grace(serve: Serve) -> None:
    gateway = serve(GATEWAY_HF_ISOLATION="process", GATEWAY_DRAIN_GRACE_S="20")
    gateway.generate("huggingface/smol", "hi", max_tokens=1)
    [child] = children_of(gateway)
    with stream(gateway, "huggingface/smol", "go on") as reply:
        events = events_of(reply)
        assert any(name == "delta" for name, _ in events)
        # What a service manager does: everybody is told.
        for pid in (child, gateway.pid):
            os.kill(pid, signal.SIGTERM)
        last = list(events)[-1]
    assert (last[0], last[1]["reason"]) == ("finished", "length")
    assert gateway.wait() == 0
    assert has_ended(child, within_s=1)
