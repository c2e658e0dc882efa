"""What requests feel of a rotation's steps: how many fail, and what the slowest of them wait.

    python -m bench.rotation            # about three minutes
    python -m bench.rotation --quick    # tiny models and one step of each kind, to see that it runs

A gateway in a process of its own, models of ours in it and a make-believe Ollama server beside it.
Clients ask `rotation/r` without a pause while it is advanced again and again. Requests that overlap
with a step are held against those beside steps.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import anyio

from bench import machine, tables
from bench.answers import quantile
from bench.environments import DATA, ROOT
from bench.prompts import make_prompts
from bench.shapes import TITLES, ensure_model

CLIENTS = 4
TOKENS = 16
PROMPT_TOKENS = 32
PROMPTS = 50
"""Of each client, again and again: making more would hold up the first requests."""
REST_S = 5.0
"""Without a step, before the first and after each."""
STEPS = 4
LIMIT_S = 200.0
START_S = 60.0
OLLAMA = ["ollama/llama3.2:latest", "ollama/qwen3:8b"]


@dataclass
class Kind:
    """One row: who takes turns, and with how many models of ours in memory."""

    title: str
    models: list[str]
    max_models: int = 2


@dataclass
class Request:
    """One that was answered, or not: times are seconds of one clock."""

    began: float
    first: float | None = None
    ended: float = 0.0
    error: str | None = None

    def overlaps(self, spans: list[tuple[float, float]]) -> bool:
        return any(self.began < end and self.ended > begin for begin, end in spans)


@dataclass
class Found:
    """What one row is made of."""

    requests: list[Request] = field(default_factory=list)
    steps: list[tuple[float, float]] = field(default_factory=list)

    def ttfts(self, *, in_steps: bool) -> list[float]:
        return [
            request.first - request.began
            for request in self.requests
            if request.first is not None and request.overlaps(self.steps) is in_steps
        ]


@contextmanager
def ran(command: list[str], environment: dict[str, str], ready: str) -> Iterator[str]:
    """Run a process until the block ends; give the URL that it prints. Blocks while it starts."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            yield _read_url(process, ready)
        finally:
            process.terminate()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def _read_url(process: "subprocess.Popen[str]", ready: str) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(ready, line):
            return found[1]
    raise SystemExit(f"{process.args!r} did not start")


@asynccontextmanager
async def serving(kind: Kind, ollama: str) -> AsyncIterator[aiohttp.ClientSession]:
    """Give a client of a gateway that serves the rotation."""
    with tempfile.TemporaryDirectory() as folder:
        own = {key: value for key, value in os.environ.items() if not key.startswith("GATEWAY_")}
        environment = own | {
            "GATEWAY_DATA_DIR": folder,
            "GATEWAY_PORT": "0",
            "GATEWAY_HF_MAX_MODELS": str(kind.max_models),
            "GATEWAY_ROTATIONS": json.dumps({"r": {"models": kind.models}}),
            "HF_MODEL_PATH": str(DATA / "models"),
            "HF_HUB_OFFLINE": "1",
            "OLLAMA_HOST": ollama,
        }
        command = [sys.executable, "-m", "gateway", "serve"]
        upgrade(environment)
        with ran(command, environment, r"serves at (http://\S+)") as url:
            no_limit = aiohttp.ClientTimeout(total=None)
            async with aiohttp.ClientSession(url, timeout=no_limit) as client:
                yield client


def upgrade(environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "gateway", "db", "upgrade"]
    subprocess.run(command, check=True, env=environment, cwd=ROOT, capture_output=True)


async def ask(client: aiohttp.ClientSession, prompt: str, model: str = "rotation/r") -> Request:
    """Stream one answer; an error in it or a cut is a failure."""
    request = Request(time.perf_counter())
    body = {
        "model": model,
        "prompt": prompt,
        "raw": True,
        "options": {"max_tokens": TOKENS, "temperature": 0},
    }
    name = b""
    try:
        async with client.post("/api/v1/stream", json=body) as reply:
            if not reply.ok:
                request.error = f"status {reply.status}: {(await reply.text())[:200]}"
            async for line in reply.content:
                if line.startswith(b"event: "):
                    name = line[7:].strip()
                if name == b"delta" and request.first is None:
                    request.first = time.perf_counter()
        if request.error is None and (name != b"finished" or request.first is None):
            request.error = f"it ended with {name.decode() or 'nothing'}"
    except aiohttp.ClientError as error:
        request.error = f"{type(error).__name__}: {error}"
    request.ended = time.perf_counter()
    return request


async def keep_asking(client: aiohttp.ClientSession, found: Found, seed: int) -> None:
    for prompt in cycle(make_prompts(PROMPTS, PROMPT_TOKENS, seed=seed)):
        found.requests.append(await ask(client, prompt))


async def step(client: aiohttp.ClientSession) -> tuple[float, float]:
    """Advance the rotation; return when that began and ended. SystemExit where it fails."""
    began = time.perf_counter()
    async with client.post("/api/v1/rotations/r/advance") as reply:
        asked: dict[str, Any] = await reply.json()
    while True:
        async with client.get("/api/v1/rotations/r/history?limit=1") as reply:
            newest = (await reply.json())["steps"][0]
        if newest["id"] == asked["id"] and newest["ended_at"] is not None:
            if newest["state"] != "SUCCEEDED":
                raise SystemExit(f"a step came out as {newest}")
            return began, time.perf_counter()
        await anyio.sleep(0.05)


async def measure(kind: Kind, ollama: str, steps: int, rest_s: float) -> Found:
    found = Found()
    async with serving(kind, ollama) as client:
        # The demo first: its load waits for torch, whose import holds up a gateway that has
        # just started.
        for model in ("huggingface/demo", "rotation/r"):
            if (error := (await ask(client, "a", model)).error) is not None:
                raise SystemExit(f"it does not answer: {error}")
        await client.post("/api/v1/models/unload", json={"model": "huggingface/demo"})
        async with anyio.create_task_group() as tasks:
            for seed in range(CLIENTS):
                tasks.start_soon(keep_asking, client, found, seed + 1)
            await anyio.sleep(rest_s)
            for _ in range(steps):
                found.steps.append(await step(client))
                await anyio.sleep(rest_s)
            tasks.cancel_scope.cancel()
    return found


def describe(kind: Kind, found: Found) -> dict[str, Any]:
    beside, during = found.ttfts(in_steps=False), found.ttfts(in_steps=True)
    errors = [request.error for request in found.requests if request.error is not None]
    return {
        "kind": kind.title,
        "steps": len(found.steps),
        "step_s": median(end - begin for begin, end in found.steps),
        "requests": len(found.requests),
        "in_steps": len(during),
        "failed": len(errors),
        "errors": sorted(set(errors))[:3],
        "ttft_p50_ms": quantile(beside, 0.5) * 1000,
        "ttft_p99_ms": quantile(beside, 0.99) * 1000,
        "step_ttft_p50_ms": quantile(during, 0.5) * 1000,
        "step_ttft_p99_ms": quantile(during, 0.99) * 1000,
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    head = [
        *("steps", "requests", "failed", "step s", "TTFT p50 / p99 ms beside steps"),
        "TTFT p50 / p99 ms in steps",
    ]
    lines = [
        [
            f"{row['kind']}, {row['steps']}",
            f"{row['requests']:,}, {row['in_steps']:,} in steps",
            str(row["failed"]),
            f"{row['step_s']:.1f}",
            f"{row['ttft_p50_ms']:,.0f} / {row['ttft_p99_ms']:,.0f}",
            f"{row['step_ttft_p50_ms']:,.0f} / {row['step_ttft_p99_ms']:,.0f}",
        ]
        for row in rows
    ]
    tables.out(tables.markdown(head, lines))
    for row in rows:
        for error in row["errors"]:
            tables.out(f"{row['kind']}: {error}")


def make_kinds(shape: str) -> list[Kind]:
    names = [f"rotation-{shape}-{letter}" for letter in "ab"]
    for seed, name in enumerate(names):
        ensure_model(shape, Path(DATA / "models" / name), seed=seed)
    ours = [f"huggingface/{name}" for name in names]
    title = TITLES[shape]
    return [
        Kind("Ollama to Ollama", OLLAMA),
        Kind(f"{title} here to Ollama and back", [ours[0], OLLAMA[0]]),
        Kind(f"{title} here to another, room for both", ours),
        Kind(f"{title} here to another, room for one", ours, max_models=1),
    ]


async def run(shape: str, steps: int, rest_s: float) -> list[dict[str, Any]]:
    rows = []
    server = [sys.executable, "-m", "tests.integration.ollama_peer", "--port", "0"]
    command = [*server, "--token-delay-s", "0.01"]
    with ran(command, dict(os.environ), r"(http://\S+)") as ollama:
        for kind in make_kinds(shape):
            tables.say(kind.title)
            with anyio.fail_after(START_S + LIMIT_S / 4):
                rows.append(describe(kind, await measure(kind, ollama, steps, rest_s)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    shape, steps, rest_s = ("tiny", 1, 1.0) if options.quick else ("135m", STEPS, REST_S)
    rows = anyio.run(run, shape, steps, rest_s)
    print_table(rows)
    tables.out(json.dumps({"machine": machine.describe(), "rotation": rows}))
    sys.exit(1 if any(row["failed"] for row in rows) else 0)


if __name__ == "__main__":
    main()
