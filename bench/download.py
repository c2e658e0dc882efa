"""What a download costs the streams that run beside it: the gaps between tokens, with and without.

    python -m bench.download

A gateway as a process, its demo model answering some streams, and a Hub on loopback that sends a
file at a bounded rate: unbounded, the Hub itself would take the machine. Loopback only.
"""

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from bench import machine
from bench.tables import markdown, out, say
from tests.integration.hub_peer.files import HubFile
from tests.integration.hub_peer.server import HubPeer
from tests.integration.hub_peer.wire import Exchange

STREAMS = 4
TOKENS = 400
FILE_BYTES = 256 * 2**20
ROUNDS = 2


class BoundedHub(HubPeer):
    """A Hub that sends no more than so many bytes a second, over all its connections."""

    def __init__(self, bytes_per_s: float) -> None:
        super().__init__()
        self._bytes_per_s = bytes_per_s
        self._due = time.perf_counter()

    async def _dispatch(self, exchange: Exchange) -> None:
        write = exchange.write

        async def slowly(data: bytes) -> None:
            now = time.perf_counter()
            self._due = max(self._due + len(data) / self._bytes_per_s, now - 0.05)
            await asyncio.sleep(max(0.0, self._due - now))
            await write(data)

        exchange.write = slowly  # type: ignore[method-assign]
        await super()._dispatch(exchange)


def start_gateway(folder: Path, hub_url: str) -> tuple[subprocess.Popen[str], str]:
    """Return a gateway over an empty database, and its URL."""
    environment = os.environ | {
        "GATEWAY_DATA_DIR": str(folder / "data"),
        "GATEWAY_PORT": "0",
        "GATEWAY_HUB_ENDPOINT": hub_url,
        "GATEWAY_DOWNLOAD_RESERVE_BYTES": "0",
        "HF_HOME": str(folder / "hf"),
        "OLLAMA_HOST": "http://127.0.0.1:9",
    }
    command = [sys.executable, "-m", "gateway"]
    subprocess.run([*command, "db", "upgrade"], env=environment, check=True, capture_output=True)
    process = subprocess.Popen(
        [*command, "serve"], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"serves at (http://\S+)", line):
            return process, found[1]
    raise RuntimeError("the gateway did not start")


async def gaps_of_stream(client: httpx.AsyncClient, while_true: Callable[[], bool]) -> list[float]:
    """Return the seconds between the pieces of one answer, cut off once that is not so."""
    body = {
        "model": "huggingface/demo",
        "prompt": "What is a gateway?",
        "options": {"max_tokens": TOKENS, "seed": 1},
    }
    gaps, last = [], 0.0
    async with client.stream("POST", "/api/v1/stream", json=body) as reply:
        async for line in reply.aiter_lines():
            if not while_true():
                break
            if line == "event: delta":
                now = time.perf_counter()
                if last:
                    gaps.append(now - last)
                last = now
    return gaps


async def measure(client: httpx.AsyncClient, while_true: Callable[[], bool]) -> list[float]:
    """Return the gaps of streams that run, so many at once, as long as that is so."""
    gaps: list[float] = []

    async def again_and_again() -> None:
        while while_true():
            gaps.extend(await gaps_of_stream(client, while_true))

    await asyncio.gather(*(again_and_again() for _ in range(STREAMS)))
    return sorted(gaps)


def for_seconds(seconds: float) -> Callable[[], bool]:
    until = time.perf_counter() + seconds
    return lambda: time.perf_counter() < until


async def serve_hub(rate_mb: float) -> None:
    """Serve until the process is ended; its own, so that it does not hold up who measures."""
    async with BoundedHub(rate_mb * 1e6) as hub:
        file = HubFile("model.safetensors", os.urandom(FILE_BYTES))
        hub.files.add("org/big", file)
        sys.stdout.write(f"{hub.url} {file.sha256} {file.blob_id}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


async def measure_rounds(url: str, seconds: float) -> list[tuple[str, list[float], float]]:
    """Return name, gaps and MB/s of each part, in turn without and with a download."""
    rows = []
    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
        await measure(client, for_seconds(2))
        for round_ in range(ROUNDS):
            rows.append(("without", await measure(client, for_seconds(seconds)), 0.0))
            gaps, rate = await measure_download(client, seconds)
            say(f"round {round_ + 1} of {ROUNDS}: {rate:.1f} MB/s")
            rows.append(("with", gaps, rate))
    return rows


async def measure_download(client: httpx.AsyncClient, seconds: float) -> tuple[list[float], float]:
    """Return the gaps beside a download, and its MB/s; for that long, or until it has ended."""
    body = {"repo": "org/big", "force": True}
    order = (await client.post("/api/v1/downloads", json=body)).json()
    path = f"/api/v1/downloads/{order['id']}"
    begun = time.perf_counter()
    until, found = begun + seconds, order

    async def watch() -> None:
        nonlocal found
        while found["state"] in ("QUEUED", "RUNNING") and time.perf_counter() < until:
            await asyncio.sleep(0.1)
            found = (await client.get(path)).json()

    watching = asyncio.create_task(watch())
    gaps = await measure(client, lambda: not watching.done())
    took_s = time.perf_counter() - begun
    if found["state"] == "RUNNING":
        await client.post(f"{path}/cancel", json={})
    return gaps, found["bytes_done"] / took_s / 1e6


def run(rate_mb: float, seconds: float) -> None:
    command = [sys.executable, "-m", "bench.download", "--hub", "--rate-mb", str(rate_mb)]
    hub = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert hub.stdout is not None
    hub_url = hub.stdout.readline().split()[0]
    with tempfile.TemporaryDirectory() as folder:
        gateway, url = start_gateway(Path(folder), hub_url)
        try:
            rows = asyncio.run(measure_rounds(url, seconds))
        finally:
            for process in (gateway, hub):
                process.terminate()
                process.wait()
    say(json.dumps(machine.describe()))
    head = ["download", "MB/s", "gaps", "p50 ms", "p99 ms", "max ms"]
    out(markdown(head, [_row(*row) for row in rows]))


def _row(name: str, gaps: list[float], rate: float) -> list[str]:
    at = [gaps[int(len(gaps) * share)] * 1e3 for share in (0.5, 0.99)]
    return [name, f"{rate:.1f}", str(len(gaps)), *(f"{ms:.2f}" for ms in (*at, gaps[-1] * 1e3))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate-mb", type=float, default=25.0, help="MB/s that the Hub sends.")
    parser.add_argument("--hub", action="store_true", help="Only serve the Hub.")
    parser.add_argument("--seconds", type=float, default=8.0, help="How long each part takes.")
    given = parser.parse_args()
    if given.hub:
        asyncio.run(serve_hub(given.rate_mb))
    else:
        run(given.rate_mb, given.seconds)


if __name__ == "__main__":
    main()
