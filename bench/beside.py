"""The gateway beside its peers in turns of a second, on a machine that is not quiet.

    python -m bench.beside                      # about ten minutes
    python -m bench.beside --peers gateway,litellm-openai --paced-s 0

What shares the processor changes its speed by as much as half, for minutes: who is measured in
another minute is measured on another machine. So all peers run at once, each at rest until it is
its turn, and what is compared is what two took in the same turn. Figures are medians over turns.
"""

import argparse
import asyncio
import itertools
import json
import os
import statistics
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

import uvloop

from bench import machine, tables
from bench.arguments import names, numbers
from bench.cells import TOKENS, Cell
from bench.gateway import Bench, Target, put, running
from bench.ollama_mock import OllamaMock
from bench.processes import Failed
from bench.proxies import PROXIES

OURS = "gateway"
PEERS = ("direct", OURS, "starlette", "nginx")


@dataclass(frozen=True)
class Turn:
    """What one peer took in one turn; without a process there is no processor time."""

    requests_per_s: float
    request_us: float | None
    token_us: float | None
    """Of a paced stream, beyond what a request in one piece takes."""
    alone_ms: float
    """The median of a request that comes alone."""


FIGURES = {
    "requests/s": "requests_per_s",
    "CPU us/request": "request_us",
    "CPU us/token": "token_us",
    "added p50 ms": "alone_ms",
}


async def compare(options: argparse.Namespace, core: int) -> dict[int, dict[str, list[Turn]]]:
    """Return the turns of every peer by the number of connections."""
    mock = OllamaMock()
    bench = Bench(options, mock, await mock.start(), core, itertools.count(1))
    found: dict[int, dict[str, list[Turn]]] = {}
    async with AsyncExitStack() as stack:
        targets = {
            name: await stack.enter_async_context(running(name, bench)) for name in options.peers
        }
        for streams in options.streams:
            turns = found[streams] = {name: [] for name in targets}
            for number in range(options.turns):
                first = number % len(targets)
                order = [*targets, *targets][first : first + len(targets)]
                for name in order:
                    turns[name].append(await take(targets[name], streams, bench))
                tables.say(f"{streams} connections: turn {number + 1}")
    mock.close()
    return found


async def take(target: Target, streams: int, bench: Bench) -> Turn:
    """Have one peer do all loads of a turn. Raises Failed, OSError."""
    options = bench.options
    alone, _ = await put(target, Cell("piece", 1), bench, options.seconds / 2)
    piece, _ = await put(target, Cell("piece", streams), bench, options.seconds)
    token_us = None
    if options.paced_s:
        cell = Cell("paced", streams)
        paced, _ = await put(target, cell, bench, options.paced_s + cell.answer_s)
        if paced.cpu_us_answer is not None and piece.cpu_us_answer is not None:
            token_us = (paced.cpu_us_answer - piece.cpu_us_answer) / TOKENS["paced"]
    if alone.p50_ms is None:
        raise Failed("no answer came in time")
    return Turn(piece.requests_per_s, piece.cpu_us_answer, token_us, alone.p50_ms)


# --- the report --------------------------------------------------------------------------------


def values(turns: dict[str, list[Turn]], name: str, figure: str) -> list[float] | None:
    """Return one figure of a peer, of every turn."""
    found = [getattr(turn, figure) for turn in turns[name]]
    if figure == "alone_ms":
        if "direct" not in turns or name == "direct":
            return None
        found = [
            through - turn.alone_ms for through, turn in zip(found, turns["direct"], strict=True)
        ]
    return None if None in found else found


def report(found: dict[int, dict[str, list[Turn]]]) -> str:
    head = ["connections", "peer", *FIGURES]
    rows = []
    for streams, turns in found.items():
        for name in turns:
            row = [f"{streams:,}", name]
            for figure in FIGURES.values():
                row.append(describe(values(turns, name, figure), values(turns, OURS, figure)))
            rows.append(row)
    return tables.markdown(head, rows)


def describe(theirs: list[float] | None, ours: list[float] | None) -> str:
    """Return the median, and in brackets what ours takes of it: median and quartiles over turns."""
    if theirs is None:
        return ""
    text = f"{statistics.median(theirs):,.3g}"
    if ours is None or theirs == ours:
        return text
    low, middle, high = statistics.quantiles(
        [mine / its for mine, its in zip(ours, theirs, strict=True)], n=4
    )
    return f"{text} (ours {middle:.2f}x; {low:.2f} to {high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", type=names(PROXIES), default=list(PEERS))
    parser.add_argument("--streams", type=numbers, default=[32, 200], help="at the same time")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a load in one piece")
    parser.add_argument("--paced-s", type=float, default=2.0, help="of paced streams; 0: none")
    parser.add_argument("--limit", type=float, default=20.0, help="seconds for one load")
    options = parser.parse_args(sys.argv[1:])
    described = machine.describe()
    cores = sorted(os.sched_getaffinity(0))
    is_apart = machine.pin(1)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(compare(options, cores[0]))
    tables.out(report(found))
    loads: dict[int, dict[str, Sequence[list[float] | None]]] = {
        streams: {
            name: [values(turns, name, figure) for figure in FIGURES.values()] for name in turns
        }
        for streams, turns in found.items()
    }
    tables.out(json.dumps(described | {"bench": "beside", "load_apart": is_apart, "turns": loads}))


if __name__ == "__main__":
    main()
