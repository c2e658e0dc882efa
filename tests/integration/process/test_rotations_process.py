"""Rotations of gateways that are killed and stopped, and by the command line.

F40, F41: a step is taken on from wherever it was left, and who was stopped for longer than his
lease does nothing any more.
"""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest

from tests.integration.ollama_peer import Exchange, OllamaPeer
from tests.integration.process.conftest import GatewayProcess, run_gateway

Serve = Callable[..., GatewayProcess]
URL = "/api/v1/rotations"
A, B = "ollama/a:latest", "ollama/b:latest"


class Peer:
    """A scripted Ollama server where loads, or unloads, wait for a gate while that is there."""

    def __init__(self, peer: OllamaPeer) -> None:
        self.peer = peer
        self._gate = asyncio.Event()
        self._gate.set()
        self._holds_unloads = False
        peer.script_route("/api/generate", self._wait)

    def hold(self, *, unloads: bool = False) -> None:
        self._gate = asyncio.Event()
        self._holds_unloads = unloads

    def open(self) -> None:
        self._gate.set()

    async def _wait(self, exchange: Exchange) -> None:
        is_unload = exchange.seen.body.get("keep_alive") == 0
        if is_unload == self._holds_unloads:
            await self._gate.wait()
        await self.peer._generate(exchange)

    def unloads_of(self, name: str) -> int:
        bodies = [seen.body for seen in self.peer.seen("/api/generate")]
        return sum(body["model"] == name and body.get("keep_alive") == 0 for body in bodies)


@asynccontextmanager
async def scripted() -> AsyncIterator[Peer]:
    async with OllamaPeer() as peer:
        for name in "ab":
            peer.add_model(name)
        yield Peer(peer)


async def start(serve: Serve, peer: Peer, **extra: str) -> GatewayProcess:
    settings = {"OLLAMA_HOST": peer.peer.url, "GATEWAY_PROVIDERS": "ollama", **extra}
    return await anyio.to_thread.run_sync(lambda: serve(**settings))


async def ask(gateway: GatewayProcess, method: str, path: str, **body: Any) -> dict[str, Any]:
    """Ask the gateway in a thread: this loop serves the Ollama server."""

    def send() -> httpx.Response:
        return gateway.client.request(method, URL + path, json=body or None)

    reply = await anyio.to_thread.run_sync(send)
    assert reply.status_code < 300, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


async def step_in(gateway: GatewayProcess, phase: str) -> dict[str, Any]:
    """Wait until the step that is under way is that far."""
    while True:
        step = (await ask(gateway, "GET", "/r"))["step"]
        if step is not None and step["node"] is not None and step["phase"] == phase:
            return dict(step)
        await anyio.sleep(0.02)


async def ended(gateway: GatewayProcess) -> dict[str, Any]:
    while True:
        [newest, *_] = (await ask(gateway, "GET", "/r/history"))["steps"]
        if newest["ended_at"] is not None:
            return dict(newest)
        await anyio.sleep(0.05)


@pytest.mark.timeout(180)
async def test_kill_9_in_any_phase_of_a_step_and_the_next_start_ends_it(serve: Serve) -> None:
    with anyio.fail_after(150):
        async with scripted() as peer:
            gateway = await start(serve, peer)
            present = [A, B]
            for phase in ("WARMING", "RELEASING", "DRAINING", "LOADING"):
                is_warm = phase in ("WARMING", "RELEASING")
                await ask(gateway, "PUT", "/r", models=[A, B], warm_up=is_warm)
                peer.hold(unloads=phase in ("RELEASING", "DRAINING"))
                await ask(gateway, "POST", "/r/advance")
                await step_in(gateway, phase)
                gateway.kill()
                peer.open()
                gateway = await start(serve, peer)
                step = await ended(gateway)
                present.reverse()
                assert (step["state"], step["target"], step["message"]) == (
                    "SUCCEEDED",
                    present[0],
                    None,
                ), phase
                rotation = await ask(gateway, "GET", "/r")
                assert (rotation["current"], rotation["step"]) == (present[0], None)
                assert list(peer.peer.loaded) == [present[0].removeprefix("ollama/")]
            steps = (await ask(gateway, "GET", "/r/history"))["steps"]
            assert [step["state"] for step in steps] == ["SUCCEEDED"] * 4


@pytest.mark.timeout(180)
async def test_who_was_stopped_in_a_step_wakes_up_to_find_it_is_another_s(
    serve: Serve, postgres_url: str, tmp_path: Path
) -> None:
    async with scripted() as peer:
        gateways = {
            name: await start(
                serve,
                peer,
                GATEWAY_NODE=name,
                GATEWAY_DATA_DIR=str(tmp_path / name),
                GATEWAY_DATABASE_URL=postgres_url,
                GATEWAY_LEASE_S="2",
            )
            for name in ("one", "two")
        }
        with anyio.fail_after(120):
            await ask(gateways["one"], "PUT", "/r", models=[A, B])
            peer.hold()
            await ask(gateways["one"], "POST", "/r/advance")
            taken = await step_in(gateways["one"], "WARMING")
            stopped = gateways.pop(taken["node"])
            [living] = gateways.values()
            os.kill(stopped.pid, signal.SIGSTOP)
            try:
                while (await ask(living, "GET", "/r"))["step"]["node"] == taken["node"]:
                    await anyio.sleep(0.05)  # until the lease is over
                peer.open()
                step = await ended(living)
                assert (step["state"], step["target"], step["id"]) == ("SUCCEEDED", B, taken["id"])
                assert step["node"] != taken["node"]
                # And back again, so that what the other one does late would be wrong.
                await ask(living, "POST", "/r/advance")
                assert (await ended(living))["target"] == A
                unloads = peer.unloads_of("a:latest")
            finally:
                os.kill(stopped.pid, signal.SIGCONT)
            while (await ask(stopped, "GET", "/r"))["current"] != A:
                await anyio.sleep(0.05)
            await ask(stopped, "POST", "/r/advance", to=B)
            assert (await ended(stopped))["target"] == B
            steps = (await ask(living, "GET", "/r/history"))["steps"]
            assert [step["state"] for step in steps] == ["SUCCEEDED"] * 3
            assert peer.unloads_of("a:latest") <= unloads + 2  # by the last step, and who follows


@pytest.fixture
def command(environment: dict[str, str], serve: Serve) -> Callable[..., tuple[int, str]]:
    """Run `gateway rotations ...` against a served gateway; return exit code and output."""
    gateway = serve(GATEWAY_ROTATIONS='{"fixed": ["huggingface/demo", "huggingface/smol"]}')
    port = gateway.url.rpartition(":")[2]

    def run(*arguments: str) -> tuple[int, str]:
        done = run_gateway(environment | {"GATEWAY_PORT": port}, "rotations", *arguments)
        return done.returncode, done.stdout + done.stderr

    return run


def test_the_command_does_all_of_it(command: Callable[..., tuple[int, str]]) -> None:
    made = command("set", "r", "huggingface/smol", "huggingface/demo", "--every", "3600")
    assert made[0] == 0 and "* huggingface/smol" in made[1] and "next at" in made[1]
    listed = command("list")
    assert "rotation/r  huggingface/smol" in listed[1] and "rotation/fixed" in listed[1]
    assert "paused" in command("pause", "r")[1]
    assert "paused" not in command("resume", "r")[1]
    assert "No step" in command("history", "r")[1]
    asked = command("advance", "r", "--to", "huggingface/demo")
    assert asked[0] == 0 and "huggingface/smol -> huggingface/demo  (hand)" in asked[1]
    while "SUCCEEDED" not in command("history", "r")[1]:
        time.sleep(0.5)
    shown = json.loads(command("show", "r", "--json")[1])
    assert (shown["current"], shown["interval_s"]) == ("huggingface/demo", 3600)
    assert command("rm", "r") == (0, "rotation/r is removed.\n")
    assert command("show", "r") == (
        1,
        "Error: There is no rotation 'r'.\nGET /api/v1/rotations lists them.\n",
    )
    fixed = command("rm", "fixed")
    assert fixed[0] == 1 and "in the config" in fixed[1]
