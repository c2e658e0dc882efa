"""What the client that streams from Ollama costs: `ollama.AsyncClient`, httpx, and ours on aiohttp.

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
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import httpx
import msgspec
import ollama
import uvloop

from gateway.core.events import Finished, ReasoningDelta, TextDelta
from gateway.core.messages import GenerateRequest, Message, Options, TextPart
from gateway.core.names import ModelRef
from gateway.providers.ollama import OllamaService

TOKEN_S = 0.02
CONNECTIONS = 32
STREAMS = 100
BURST_STREAMS = 4
BURST_TOKENS = 1000
PACED_TOKENS = 20
BUDGET_S = 50.0
PROMPT = "Why is the sky blue?"

Client = Callable[[str, int], AsyncIterator[int]]
"""Asks `model` for so many tokens; yields 1 for each piece of text as it arrives."""


class Result(msgspec.Struct):
    """Of one client in one round."""

    cpu_us_request: float
    cpu_us_burst_token: float
    cpu_us_paced_token: float
    requests_per_s: float
    ttft_ms: float


# --- the mock server ---------------------------------------------------------------------------


class Mock(asyncio.Protocol):
    """Answers /api/chat with `num_predict` lines: at once, or paced for the model "paced"."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.received = b""

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, found, body = self.received.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(body) < length:
            return
        self.received = body[length:]
        asked = json.loads(body[:length])
        tokens = asked["options"]["num_predict"]
        self.transport.write(HEAD)
        if asked["model"].startswith("paced"):
            self.send_paced(tokens)
        else:
            for _ in range(tokens):
                self.transport.write(TOKEN)
            self.transport.write(END)

    def send_paced(self, left: int) -> None:
        if self.transport.is_closing():
            return
        if not left:
            self.transport.write(END)
            return
        self.transport.write(TOKEN)
        asyncio.get_running_loop().call_later(TOKEN_S, self.send_paced, left - 1)


def _chunk(**fields: object) -> bytes:
    line = json.dumps({"model": "burst", "created_at": "2026-11-20T10:11:12.123456789Z", **fields})
    return b"%x\r\n%b\n\r\n" % (len(line) + 1, line.encode())


HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
)
TOKEN = _chunk(message={"role": "assistant", "content": " token"}, done=False)
END = (
    _chunk(
        message={"role": "assistant", "content": ""},
        done=True,
        done_reason="stop",
        total_duration=174560334,
        prompt_eval_count=26,
        eval_count=259,
    )
    + b"0\r\n\r\n"
)


async def serve() -> None:
    """Serve until killed; print the port."""
    server = await asyncio.get_running_loop().create_server(Mock, "127.0.0.1", 0, backlog=2048)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


# --- the clients -------------------------------------------------------------------------------


@asynccontextmanager
async def ollama_client(url: str) -> AsyncIterator[Client]:
    client = ollama.AsyncClient(url)

    async def ask(model: str, tokens: int) -> AsyncIterator[int]:
        messages = [{"role": "user", "content": PROMPT}]
        parts = await client.chat(model, messages, stream=True, options={"num_predict": tokens})
        async for part in parts:
            if part.message.content:
                yield 1

    try:
        yield ask
    finally:
        await client.close()  # type: ignore[no-untyped-call]


@asynccontextmanager
async def httpx_client(url: str) -> AsyncIterator[Client]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)

    async def ask(model: str, tokens: int) -> AsyncIterator[int]:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": PROMPT}],
            "options": {"num_predict": tokens},
        }
        async with client.stream("POST", f"{url}/api/chat", json=body) as response:
            async for line in response.aiter_lines():
                if json.loads(line)["message"]["content"]:
                    yield 1

    async with httpx.AsyncClient(timeout=None, limits=limits) as client:
        yield ask


@asynccontextmanager
async def our_client(url: str) -> AsyncIterator[Client]:
    service = OllamaService(url)
    messages = (Message("user", (TextPart(PROMPT),)),)

    async def ask(model: str, tokens: int) -> AsyncIterator[int]:
        request = GenerateRequest("r", model, messages, options=Options(max_tokens=tokens))
        async with aclosing(service.stream(request, ModelRef("ollama", model))) as events:
            async for event in events:
                if isinstance(event, TextDelta | ReasoningDelta):
                    yield 1
                elif isinstance(event, Finished):
                    return

    try:
        yield ask
    finally:
        await service.aclose()


CLIENTS = {
    "ollama.AsyncClient": ollama_client,
    "httpx": httpx_client,
    "OllamaService (aiohttp)": our_client,
}
REQUESTS = {"ollama.AsyncClient": 300, "httpx": 300, "OllamaService (aiohttp)": 1500}


# --- the measurements --------------------------------------------------------------------------


async def count(client: Client, model: str, tokens: int) -> None:
    """Read one answer to its end and check that nothing of it is missing."""
    seen = 0
    async for _ in client(model, tokens):
        seen += 1
    if seen != tokens:
        raise AssertionError(f"{seen} of {tokens} tokens arrived")


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
        await many(CONNECTIONS, CONNECTIONS, lambda: count(client, "burst", 1))
        requests = REQUESTS[name]
        cpu_s, wall_s = await many(requests, CONNECTIONS, lambda: count(client, "burst", 1))
        burst_cpu_s, _ = await many(
            BURST_STREAMS, BURST_STREAMS, lambda: count(client, "burst", BURST_TOKENS)
        )
        first: list[float] = []

        async def first_token() -> None:
            start = time.perf_counter()
            answer = client("paced", PACED_TOKENS)
            async for _ in answer:
                if start:
                    first.append(time.perf_counter() - start)
                    start = 0.0

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


def pin(core: int) -> bool:
    """Keep this process on one core, where the machine lets us and has it."""
    if not hasattr(os, "sched_setaffinity"):
        return False
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[core % len(cores)]})
    return len(cores) > core


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
    ours = results["OllamaService (aiohttp)"]
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
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        pin(1)
        asyncio.run(serve())
        return
    server = subprocess.Popen(
        [sys.executable, "-m", "bench.upstream", "--serve"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parent.parent,
    )
    assert server.stdout is not None
    # After the start of the server: a child inherits the cores of its parent.
    pinned = pin(0)
    try:
        url = f"http://127.0.0.1:{int(server.stdout.readline())}"
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
