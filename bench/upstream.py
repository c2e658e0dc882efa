"""What the client that streams from Ollama costs: `ollama.AsyncClient`, httpx, aiohttp and ours.

All read the same answers of one mock server, a process of its own on another core where the
machine has one. Rounds are interleaved, figures are medians over them; compare ratios, not days.

    python -m bench.upstream
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import aiohttp
import httpx
import msgspec
import ollama
import uvloop

from bench import machine
from bench.environments import ROOT
from bench.ollama_wire import MODEL, Ask
from gateway.core.events import Event, ReasoningDelta, TextDelta
from gateway.core.messages import GenerateRequest, Message, TextPart
from gateway.core.names import ModelRef
from gateway.providers.ollama import OllamaService

CONNECTIONS = 32
STREAMS = 100
BURST_STREAMS = 4
BURST_TOKENS = 1000
PACED_TOKENS = 20
BUDGET_S = 50.0
BURST = Ask(BURST_TOKENS, interval_ms=0)
ONE = Ask(1, interval_ms=0)
PACED = Ask(PACED_TOKENS, interval_ms=20)
OURS = "OllamaService"

Client = Callable[[Ask, Callable[[], None]], Awaitable[None]]
"""Asks the mock for it, and calls back for each piece of text as it arrives."""


class Result(msgspec.Struct):
    """Of one client in one round."""

    cpu_us_request: float
    cpu_us_burst_token: float
    cpu_us_paced_token: float
    requests_per_s: float
    ttft_ms: float


# --- the clients -------------------------------------------------------------------------------


@asynccontextmanager
async def ollama_client(url: str) -> AsyncIterator[Client]:
    client = ollama.AsyncClient(url)

    async def ask(wanted: Ask, heard: Callable[[], None]) -> None:
        messages = [{"role": "user", "content": wanted.prompt}]
        parts = await client.chat(MODEL, messages, stream=True)
        async for part in parts:
            if part.message.content:
                heard()

    try:
        yield ask
    finally:
        await client.close()  # type: ignore[no-untyped-call]


@asynccontextmanager
async def httpx_client(url: str) -> AsyncIterator[Client]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)

    async def ask(wanted: Ask, heard: Callable[[], None]) -> None:
        body = {"model": MODEL, "messages": [{"role": "user", "content": wanted.prompt}]}
        async with client.stream("POST", f"{url}/api/chat", json=body) as response:
            async for line in response.aiter_lines():
                if json.loads(line)["message"]["content"]:
                    heard()

    async with httpx.AsyncClient(timeout=None, limits=limits) as client:
        yield ask


@asynccontextmanager
async def aiohttp_client(url: str) -> AsyncIterator[Client]:
    """As lean as aiohttp can be: whatever one read brings is decoded without another turn."""

    async def ask(wanted: Ask, heard: Callable[[], None]) -> None:
        body = {"model": MODEL, "messages": [{"role": "user", "content": wanted.prompt}]}
        async with session.post(f"{url}/api/chat", data=msgspec.json.encode(body)) as response:
            rest = b""
            while chunk := await response.content.readany():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    if msgspec.json.decode(line)["message"]["content"]:
                        heard()

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as (
        session
    ):
        yield ask


@asynccontextmanager
async def our_client(url: str) -> AsyncIterator[Client]:
    service = OllamaService(url)

    async def ask(wanted: Ask, heard: Callable[[], None]) -> None:
        messages = (Message("user", (TextPart(wanted.prompt),)),)
        request = GenerateRequest("r", MODEL, messages)

        def tell(events: Sequence[Event]) -> None:
            for event in events:
                if isinstance(event, TextDelta | ReasoningDelta):
                    heard()

        await service.answer(request, ModelRef("ollama", MODEL), tell)

    try:
        yield ask
    finally:
        await service.aclose()


CLIENTS = {
    "ollama.AsyncClient": ollama_client,
    "httpx": httpx_client,
    "aiohttp": aiohttp_client,
    OURS: our_client,
}
REQUESTS = {"ollama.AsyncClient": 300, "httpx": 300, "aiohttp": 1500, OURS: 1500}


# --- the measurements --------------------------------------------------------------------------


async def count(client: Client, wanted: Ask) -> None:
    """Read one answer to its end and check that nothing of it is missing."""
    seen = 0

    def heard() -> None:
        nonlocal seen
        seen += 1

    await client(wanted, heard)
    if seen != wanted.tokens:
        raise AssertionError(f"{seen} of {wanted.tokens} tokens arrived")


async def many(jobs: int, at_once: int, job: Callable[[], Awaitable[None]]) -> tuple[float, float]:
    """Do `job` so many times, `at_once` together; return CPU seconds and wall seconds."""
    left = iter(range(jobs))

    async def work() -> None:
        for _ in left:
            await job()

    cpu, wall = time.process_time(), time.perf_counter()
    await asyncio.gather(*(work() for _ in range(at_once)))
    return time.process_time() - cpu, time.perf_counter() - wall


async def measure(name: str, url: str) -> Result:
    """Measure one client, warm, in one round."""
    async with CLIENTS[name](url) as client:
        await many(CONNECTIONS, CONNECTIONS, lambda: count(client, ONE))
        requests = REQUESTS[name]
        cpu_s, wall_s = await many(requests, CONNECTIONS, lambda: count(client, ONE))
        burst_cpu_s, _ = await many(BURST_STREAMS, BURST_STREAMS, lambda: count(client, BURST))
        first: list[float] = []

        async def first_token() -> None:
            start = time.perf_counter()

            def heard() -> None:
                nonlocal start
                if start:
                    first.append(time.perf_counter() - start)
                    start = 0.0

            await client(PACED, heard)

        paced_cpu_s, _ = await many(STREAMS, STREAMS, first_token)
    cpu_request_s = cpu_s / requests
    burst_cpu_s -= BURST_STREAMS * cpu_request_s
    paced_cpu_s -= STREAMS * cpu_request_s
    return Result(
        cpu_us_request=cpu_request_s * 1e6,
        cpu_us_burst_token=burst_cpu_s / (BURST_STREAMS * BURST_TOKENS) * 1e6,
        cpu_us_paced_token=paced_cpu_s / (STREAMS * PACED_TOKENS) * 1e6,
        requests_per_s=requests / wall_s,
        ttft_ms=statistics.median(first) * 1e3,
    )


async def run(rounds: int, url: str) -> tuple[dict[str, Result], int]:
    """Measure all clients in every round, each round beginning with another one.

    On a machine that is slow just now no new round starts once BUDGET_S is spent.
    """
    start = time.perf_counter()
    results: dict[str, list[Result]] = {name: [] for name in CLIENTS}
    names = list(CLIENTS)
    for turn in range(rounds):
        if turn and (time.perf_counter() - start) * (turn + 1) / turn > BUDGET_S:
            break
        for place in range(len(names)):
            name = names[(turn + place) % len(names)]
            results[name].append(await measure(name, url))
    medians = {
        name: Result(
            *(
                statistics.median(getattr(result, field) for result in seen)
                for field in Result.__struct_fields__
            )
        )
        for name, seen in results.items()
    }
    return medians, len(results[names[0]])


def table(results: dict[str, Result]) -> str:
    """Return the medians and what each is times ours, as a Markdown table."""
    ours = results[OURS]
    lines = [
        "| client | CPU us/request | CPU us/token, burst | CPU us/token, paced "
        f"| requests/s, {CONNECTIONS} conns | TTFT p50 ms, {STREAMS} streams |",
        "|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        cells = []
        for field in Result.__struct_fields__:
            value, base = getattr(result, field), getattr(ours, field)
            ratio = "" if result is ours else f" ({value / base:.2g}x)"
            cells.append(f"{value:,.{0 if value >= 100 else 1}f}{ratio}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Start the mock server, measure, print the table and the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    server = subprocess.Popen(
        [sys.executable, "-m", "bench.ollama_mock"], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert server.stdout is not None
    # After the start of the server: a child inherits the cores of its parent.
    pinned = machine.pin(0)
    try:
        url = server.stdout.readline().strip()
        # The loop that the gateway itself runs on.
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            results, rounds = runner.run(run(options.rounds, url))
    finally:
        server.terminate()
        server.wait()
    sys.stdout.write(f"{table(results)}\n\n")
    report = {
        "bench": "upstream",
        "rounds": rounds,
        "loop": "uvloop",
        "pinned": pinned,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "results": {name: msgspec.to_builtins(result) for name, result in results.items()},
    }
    sys.stdout.write(f"{json.dumps(report)}\n")


if __name__ == "__main__":
    main()
