"""What a search of 1,000 results costs when the answer is remembered, over real HTTP and SQLite.

`python -m bench.hub` prints a table; `--json` the figures. The Hub is scripted and on loopback.
"""

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import anyio
import httpx
import uvicorn

from gateway.bootstrap.lifetime import running
from gateway.bootstrap.server import configure
from gateway.settings import Settings
from gateway.store import migrate

RESULTS = 1000
TAGS = 12
RUNS = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    with tempfile.TemporaryDirectory() as folder, scripted_hub() as hub:
        figures = anyio.run(measure, Path(folder), hub)
    if as_json:
        sys.stdout.write(json.dumps(figures, indent=2) + "\n")
        return
    sys.stdout.write(f"{RESULTS} results, {figures['bytes']:,} bytes, {RUNS} runs\n")
    for name in ("cold_ms", "warm_p50_ms", "warm_p99_ms", "warm_max_ms"):
        sys.stdout.write(f"{name:<12} {figures[name]:8.1f}\n")


async def measure(folder: Path, hub: str) -> dict[str, Any]:
    """Return the milliseconds of the first search and of those that follow."""
    settings = Settings(data_dir=folder, hub_endpoint=hub, providers=("ollama",))
    await anyio.to_thread.run_sync(migrate.upgrade, settings.resolved_database_url)
    async with running(settings) as gateway:
        config = configure(settings, gateway)
        config.port = 0
        server = uvicorn.Server(config)
        listener = config.bind_socket()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve, [listener])
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/api/v1/hub/models"
            async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
                times, size = [], 0
                for _ in range(RUNS + 1):
                    start = time.perf_counter()
                    reply = await client.get(url, params={"limit": str(RESULTS)})
                    times.append((time.perf_counter() - start) * 1000)
                    reply.raise_for_status()
                    size = len(reply.content)
                assert len(reply.json()["models"]) == RESULTS
                assert reply.json()["source"] == "cache"
            server.should_exit = True
    cold, *warm = times
    warm.sort()
    return {
        "bytes": size,
        "cold_ms": cold,
        "warm_p50_ms": statistics.median(warm),
        "warm_p99_ms": warm[int(len(warm) * 0.99) - 1],
        "warm_max_ms": warm[-1],
    }


@contextmanager
def scripted_hub() -> Iterator[str]:
    """Serve one page of `RESULTS` models, each about as long as the Hub's."""
    page = json.dumps([model(number) for number in range(RESULTS)]).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def model(number: int) -> dict[str, Any]:
    return {
        "id": f"organisation-{number % 50}/some-model-of-{number}-Instruct",
        "author": f"organisation-{number % 50}",
        "sha": f"{number:040x}",
        "pipeline_tag": "text-generation",
        "library_name": "transformers",
        "downloads": 10**6 - number,
        "likes": number,
        "gated": False,
        "private": False,
        "tags": [*(f"tag-number-{tag}" for tag in range(TAGS)), "license:apache-2.0"],
        "createdAt": "2026-01-01T00:00:00.000Z",
        "lastModified": "2026-02-01T00:00:00.000Z",
        "safetensors": {"parameters": {"BF16": 494032768}, "total": 494032768},
    }


if __name__ == "__main__":
    main()
