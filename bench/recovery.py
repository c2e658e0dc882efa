"""How long it takes, once an Ollama server is back, until a request to it succeeds.

    python -m bench.recovery               # 40 outages, about two minutes
    python -m bench.recovery --outages 2   # to see that it runs

A gateway in a process of its own before a make-believe Ollama server, which is ended and started
again and again. An outage lasts until nobody is sent there any more, and up to two seconds longer;
then somebody asks without a pause, from the moment that the server listens.
"""

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from socket import socket

import aiohttp
import anyio

from bench import machine, tables
from bench.answers import quantile
from bench.rotation import OLLAMA, Kind, ask, ran, serving

OUTAGES = 40
LONGEST_S = 2.0
PATIENCE_S = 30.0


def free_port() -> int:
    with closing(socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def ollama(port: int) -> Iterator[str]:
    server = [sys.executable, "-m", "tests.integration.ollama_peer", "--port", str(port)]
    with ran(server, dict(os.environ), r"(http://\S+)") as url:
        yield url


async def ask_until(client: aiohttp.ClientSession, *, wanted: str | None) -> float:
    """Ask until the error is the one that is wanted, or there is none; return when that began."""
    with anyio.fail_after(PATIENCE_S):
        while True:
            request = await ask(client, "a", OLLAMA[0])
            if request.error is None if wanted is None else wanted in (request.error or ""):
                return request.ended


async def measure(outages: int) -> list[float]:
    """Return the seconds from the server's return to the end of the first answer."""
    port, rng, found = free_port(), random.Random(1), []
    with ExitStack() as first:
        url = first.enter_context(ollama(port))
        async with serving(Kind("recovery", OLLAMA), url) as client:
            await ask_until(client, wanted=None)
            first.close()
            for _ in range(outages):
                await ask_until(client, wanted="provider_resting")
                await anyio.sleep(rng.uniform(0, LONGEST_S))
                with ollama(port):
                    back = time.perf_counter()
                    found.append(await ask_until(client, wanted=None) - back)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--outages", type=int, default=OUTAGES)
    options = parser.parse_args()
    found = anyio.run(measure, options.outages)
    figures = {name: quantile(found, share) for name, share in (("p50", 0.5), ("p99", 0.99))}
    figures["max"] = max(found)
    head = ["outages", *(f"{name} ms" for name in figures)]
    cells = [str(len(found)), *(f"{seconds * 1000:.0f}" for seconds in figures.values())]
    tables.out(tables.markdown(head, [cells]))
    tables.out(json.dumps({"machine": machine.describe(), "recovery_s": figures}))


if __name__ == "__main__":
    main()
