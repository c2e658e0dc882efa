"""Tokens a second, time to the first token and gaps of the engine, beside its peers.

    python -m bench.engine              # the core tables: about a quarter of an hour
    python -m bench.engine --device cuda
    python -m bench.engine --quick      # one round of a small part: a few minutes

Each peer is a process of its own, one at a time, and all take turns in every round. What takes
longer than --limit is cut off and said to be; what is slow is measured once, as long runs
average by themselves.
"""

import argparse
import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import NamedTuple

import anyio

from bench import bandwidth, machine, resident, tables
from bench.answers import Answer, Figures, Incomplete, check, describe, median
from bench.arguments import names, numbers
from bench.environments import DATA
from bench.peers import IN_PROCESS, ON_GPU, PEERS, TITLES, Task
from bench.processes import Failed, Peer
from bench.prompts import make_prompts
from bench.shapes import SHAPES, ensure_model
from bench.shapes import TITLES as SHAPE_TITLES

START_S = 180.0
SLOW_S = 15.0
WARM_UP_TOKENS = 8
PEERS_BY_DEFAULT = ("gateway", "serve-cb", "serve", "ours", "llama.cpp", "naive")


class Cell(NamedTuple):
    """One load: so many streams at the same time, with prompts of so many tokens."""

    shape: str
    streams: int
    prompt_tokens: int


CORE = (
    *(Cell("135m", streams, 128) for streams in (1, 4, 16)),
    Cell("135m", 16, 1024),
    *(Cell("0.5b", streams, 128) for streams in (1, 16)),
)


@dataclass
class Measured:
    """Of one peer in one cell: the rounds that were whole, and why there are no more."""

    rounds: list[Figures] = field(default_factory=list)
    seconds: float = 0.0
    failure: str | None = None

    @property
    def is_done(self) -> bool:
        return self.failure is not None or self.seconds > SLOW_S


Results = dict[tuple[str, Cell], Measured]


async def compare(options: argparse.Namespace, cells: Sequence[Cell]) -> Results:
    """Measure every peer in every cell, `rounds` times where it is not slow."""
    results: Results = {key: Measured() for key in product(options.peers, cells)}
    for turn in range(options.rounds):
        for shape in dict.fromkeys(cell.shape for cell in cells):
            first = turn % len(options.peers)
            for name in (*options.peers[first:], *options.peers[:first]):
                left = [
                    cell
                    for cell in cells
                    if cell.shape == shape and not results[name, cell].is_done
                ]
                if left:
                    await measure_peer(name, left, turn, options, results)
    return results


async def measure_peer(
    name: str, cells: Sequence[Cell], turn: int, options: argparse.Namespace, results: Results
) -> None:
    """Measure one peer in cells of one shape; a cell that fails does not spare it the others."""
    left = list(cells)
    while left:
        try:
            async with running(name, left, options) as peer:
                while left and await measure(peer, name, left[0], turn, options, results):
                    del left[0]
                # Whoever was cut off or failed starts anew for what is left.
                del left[:1]
        except (Failed, TimeoutError) as error:
            reason = "it did not start in time" if isinstance(error, TimeoutError) else str(error)
            for cell in left:
                results[name, cell].failure = reason
            tables.say(f"{name}: {reason}")
            return


@asynccontextmanager
async def running(
    name: str, cells: Sequence[Cell], options: argparse.Namespace
) -> AsyncIterator[Peer]:
    """Give a peer that is loaded and warm. Raises Failed, TimeoutError."""
    shape = cells[0].shape
    task = Task(
        folder=ensure_model(shape, DATA / "models" / shape),
        streams=max(cell.streams for cell in cells),
        context=max(cell.prompt_tokens for cell in cells) + options.new_tokens,
        cb_memory=options.cb_memory,
        device=options.device,
    )
    peer = PEERS[name](task)
    try:
        with anyio.fail_after(START_S):
            await peer.start()
            await peer.run(make_prompts(1, WARM_UP_TOKENS, seed=0), WARM_UP_TOKENS)
            await peer.settle()
        yield peer
    finally:
        await peer.stop()


async def measure(
    peer: Peer,
    name: str,
    cell: Cell,
    turn: int,
    options: argparse.Namespace,
    results: Results,
) -> bool:
    """Measure one cell once, into `results`; False means that the peer is of no more use."""
    measured = results[name, cell]
    prompts = make_prompts(cell.streams, cell.prompt_tokens, seed=1 + turn)
    label = f"round {turn + 1}, {cell.shape}, {name}, {cell.streams} x {cell.prompt_tokens}"
    resident.reset_peak(peer.pid)
    began = anyio.current_time()
    try:
        with anyio.fail_after(options.limit):
            answers: list[Answer] = await peer.run(prompts, options.new_tokens)
        check(answers, prompts, options.new_tokens)
    except TimeoutError:
        measured.failure = f"cut off after {options.limit:.0f} s"
    except (Failed, Incomplete) as error:
        measured.failure = str(error)
    if measured.failure is not None:
        tables.say(f"{label}: {measured.failure}")
        return False
    measured.seconds = anyio.current_time() - began
    figures = describe(answers, resident.peak_bytes(peer.pid))
    measured.rounds.append(figures)
    tables.say(f"{label}: {figures.tokens_per_s:.1f} tokens/s")
    return True


# --- what is said of it ------------------------------------------------------------------------


def report(results: Results, cells: Sequence[Cell], peers: Sequence[str], new_tokens: int) -> str:
    """Return one table for each shape and length of prompts."""
    parts = []
    for shape, prompt_tokens in dict.fromkeys((cell.shape, cell.prompt_tokens) for cell in cells):
        chosen = [c for c in cells if (c.shape, c.prompt_tokens) == (shape, prompt_tokens)]
        parts.append(
            f"{SHAPE_TITLES[shape]}, prompts of {prompt_tokens:,} tokens, {new_tokens} new ones\n\n"
            + tables.markdown(
                [
                    "peer", "streams", "tokens/s", "ours is", "TTFT p50 s", "TTFT p95 s",
                    "gap p99 ms", "peak MB", "rounds",
                ],
                [row(results, cell, name) for cell in chosen for name in peers],
            )
        )  # fmt: skip
    return "\n\n".join(parts)


def row(results: Results, cell: Cell, name: str) -> list[str]:
    measured = results[name, cell]
    head = [TITLES[name], str(cell.streams)]
    if not measured.rounds:
        return [*head, measured.failure or "not measured", *[""] * 6]
    found = median(measured.rounds)
    return [
        *head,
        f"{found.tokens_per_s:.1f}",
        ratio(results, cell, name, found),
        f"{found.ttft_p50_s:.2f}",
        f"{found.ttft_p95_s:.2f}",
        f"{found.gap_p99_s * 1e3:.0f}",
        f"{found.peak_bytes / 1e6:,.0f}",
        f"{len(measured.rounds)}" + (f", then {measured.failure}" if measured.failure else ""),
    ]


def report_limit(results: Results, device: str, new_tokens: int, bytes_per_s: float) -> str:
    """Return how near one stream of each peer comes to what the device's memory allows."""
    rows = []
    for (name, cell), measured in results.items():
        if cell.streams > 1 or not measured.rounds:
            continue
        size = bandwidth.weight_bytes(DATA / "models" / cell.shape)
        found = bandwidth.share_of_limit(median(measured.rounds), new_tokens, size, bytes_per_s)
        rows.append(
            [TITLES[name], SHAPE_TITLES[cell.shape], f"{cell.prompt_tokens:,}", f"{found:.0%}"]
        )
    if not rows:
        return ""
    head = f"One stream, of what {bytes_per_s / 1e9:,.0f} GB/s (a large copy on {device}) allow"
    return f"{head}\n\n" + tables.markdown(["peer", "shape", "prompt", "of the limit"], rows)


def ratio(results: Results, cell: Cell, name: str, found: Figures) -> str:
    """Return how many times the tokens a second ours has, of the same kind as the peer."""
    own_name = "ours" if name in IN_PROCESS else "gateway"
    own = results.get((own_name, cell))
    if name == own_name or own is None or not own.rounds:
        return ""
    return f"{median(own.rounds).tokens_per_s / found.tokens_per_s:.2f}x"


def as_json(results: Results, options: argparse.Namespace) -> dict[str, object]:
    return {
        "bench": "engine",
        **machine.describe(),
        "options": vars(options),
        "results": [
            {
                "peer": name,
                **cell._asdict(),
                "median": asdict(median(measured.rounds)) if measured.rounds else None,
                **asdict(measured),
            }
            for (name, cell), measured in results.items()
        ],
    }


# --- the command line --------------------------------------------------------------------------


def main() -> None:
    options = parse(sys.argv[1:])
    cells = choose_cells(options)
    bytes_per_s = bandwidth.measure(options.device)
    results = anyio.run(compare, options, cells)
    tables.out(report(results, cells, options.peers, options.new_tokens))
    tables.out(report_limit(results, options.device, options.new_tokens, bytes_per_s))
    tables.out(json.dumps(as_json(results, options) | {"copy_bytes_per_s": bytes_per_s}))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", type=names(SHAPES), help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--streams", type=numbers, help="at the same time, as 1,4,16,64")
    parser.add_argument("--prompts", type=numbers, help="tokens of the prompts, as 128,1024")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps, for all peers")
    parser.add_argument("--peers", type=names(PEERS), help=f"of {', '.join(PEERS)}")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--limit", type=float, default=45.0, help="seconds for one run")
    parser.add_argument(
        "--cb-memory",
        type=float,
        default=0.2,
        help="share of the machine's memory for the cache of serve-cb (its own default is 0.6)",
    )
    parser.add_argument("--quick", action="store_true", help="one round, 16 new tokens")
    options = parser.parse_args(arguments)
    options.peers = options.peers or [
        name for name in PEERS_BY_DEFAULT if options.device == "cpu" or name in ON_GPU
    ]
    if options.device != "cpu" and (stuck := set(options.peers) - ON_GPU):
        parser.error(f"on a GPU there is no {', '.join(sorted(stuck))}")
    if options.quick:
        options.rounds, options.new_tokens = 1, 16
        options.streams = options.streams or [1, 4]
    return options


def choose_cells(options: argparse.Namespace) -> list[Cell]:
    """Return the core, or the loads that were asked for."""
    if not (options.shape or options.streams or options.prompts):
        return list(CORE)
    return [
        Cell(shape, streams, prompt_tokens)
        for shape, prompt_tokens, streams in product(
            options.shape or ["135m"], options.prompts or [128], options.streams or [1, 4, 16]
        )
    ]


if __name__ == "__main__":
    main()
