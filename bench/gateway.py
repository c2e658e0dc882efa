"""The gateway beside its peers, in front of one mock Ollama.

    python -m bench.gateway             # about 25 minutes
    python -m bench.gateway --quick     # ours, nginx and no gateway: some minutes
    python -m bench.gateway --peers gateway,portkey --streams 32 --rounds 1

A peer has a core for itself; the mock and the load share another. Peers run one at a time and take
turns in every round. What takes longer than --limit is cut off and said to be.
"""

import argparse
import asyncio
import gc
import itertools
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from itertools import product
from subprocess import CalledProcessError

import uvloop

from bench import cpu, machine, resident, tables
from bench.arguments import names, numbers
from bench.cells import KINDS, Cell, Load
from bench.costs import (
    SLOW_S,
    Costs,
    Found,
    Measured,
    Stillness,
    describe,
    describe_closing,
    median,
)
from bench.gateway_report import report
from bench.held import SILENT, SPEAKING, Held, abort, most_streams
from bench.load import Route
from bench.ollama_mock import OllamaMock
from bench.processes import Failed
from bench.proxies import PROXIES

STREAMS = (1, 32, 200, 1000)
QUICK_STREAMS = (1, 200)
QUICK_PEERS = ("direct", "gateway", "native", "nginx")
HELD_STREAMS = 10_000
ABORTS = 200
START_S = 120.0
WARM_UP = (Cell("piece", 8), Cell("burst", 4))
WARM_UP_S = 0.5
SETTLE_S = 10.0
CALM = 0.03
"""A server at rest takes no more than this share of a core."""
LOOK_S = 0.3
STOLEN = 0.02
"""More than this share of a load's time, and its figures are the host's."""
TRIES = 4


@dataclass(frozen=True)
class Bench:
    """What all measurements share."""

    options: argparse.Namespace
    mock: OllamaMock
    upstream: str
    core: int
    """Of the peers."""
    nonces: Iterator[int]


@dataclass(frozen=True)
class Target:
    """A peer that runs, warm and at rest; without a process there is only the mock."""

    route: Route
    pid: int | None
    idle_bytes: int | None


# --- the measurements --------------------------------------------------------------------------


async def compare(options: argparse.Namespace, core: int) -> Found:
    """Measure every peer under every load, `rounds` times where it is not slow."""
    mock = OllamaMock()
    bench = Bench(options, mock, await mock.start(), core, itertools.count(1))
    cells = [Cell(kind, count) for kind, count in product(KINDS, options.streams)]
    found = Found({key: Measured() for key in product(options.peers, cells)})
    for turn in range(options.rounds):
        first = turn % len(options.peers)
        for name in (*options.peers[first:], *options.peers[:first]):
            if name not in found.failures:
                tables.say(f"round {turn + 1}: {name}")
                await measure_peer(name, cells, bench, found)
    mock.close()
    return found


async def measure_peer(name: str, cells: Sequence[Cell], bench: Bench, found: Found) -> None:
    """Measure one peer once; after a load that fails it starts anew for those that are left."""
    left = [cell for cell in cells if not found.loads[name, cell].is_done]
    try:
        while left:
            async with running(name, bench) as target:
                while left and await measure(target, left[0], bench, found.loads[name, left[0]]):
                    del left[0]
                # What was cut off may go on in the server.
                del left[:1]
        if name not in found.still:
            async with running(name, bench) as target:
                found.still[name] = await measure_stillness(target, bench)
    except (Failed, TimeoutError, OSError, CalledProcessError) as error:
        found.failures[name] = str(error) or "it did not start in time"
        tables.say(f"{name}: {found.failures[name]}")


@asynccontextmanager
async def running(name: str, bench: Bench) -> AsyncIterator[Target]:
    """Give a peer that is warm. Raises Failed, TimeoutError, OSError, CalledProcessError."""
    proxy = PROXIES[name](bench.upstream, bench.core)
    if proxy.server is None:
        yield Target(proxy.route, None, None)
        return
    try:
        async with asyncio.timeout(START_S):
            await proxy.server.start()
            for cell in WARM_UP:
                load = Load(cell, proxy.route, bench.nonces)
                await load.open()
                await load.drive(WARM_UP_S)
                load.close()
        await settle(proxy.server.pid)
        yield Target(proxy.route, proxy.server.pid, resident.resident(proxy.server.pid).total)
    finally:
        await proxy.server.stop()


async def settle(pid: int) -> None:
    """Wait until the server is at rest, or for SETTLE_S."""
    for _ in range(int(SETTLE_S / LOOK_S)):
        before = cpu.seconds(pid)
        await asyncio.sleep(LOOK_S)
        if cpu.seconds(pid) - before < CALM * LOOK_S:
            return


async def measure(target: Target, cell: Cell, bench: Bench, measured: Measured) -> bool:
    """Put one load on the server once, into `measured`; False means that it failed.

    Where the host took more than STOLEN of its time it is put on again unless it is slow, and the
    one of which the host took least is what counts.
    """
    tries: list[tuple[Costs, float]] = []
    while len(tries) < TRIES and all(
        costs.stolen > STOLEN and wall_s <= SLOW_S for costs, wall_s in tries
    ):
        try:
            tries.append(await put(target, cell, bench))
        except (Failed, OSError) as error:
            measured.failure = str(error)
            tables.say(f"{cell.connections} {cell.kind}: {measured.failure}")
            return False
    costs, measured.seconds = min(tries, key=lambda each: each[0].stolen)
    measured.rounds.append(costs)
    return True


async def put(
    target: Target, cell: Cell, bench: Bench, seconds: float | None = None
) -> tuple[Costs, float]:
    """Put one load on the server, for as long as it says by itself or for `seconds`; return what it
    cost and its seconds. Raises Failed, OSError."""
    load = Load(cell, target.route, bench.nonces)
    limit_s = bench.options.limit + cell.answer_s
    # The collector would stop the load and the mock at once, for as long as they have much.
    gc.collect()
    gc.disable()
    try:
        async with asyncio.timeout(limit_s):
            await load.open()
            if target.pid is not None:
                resident.reset_peak(target.pid)
            cpu_s = None if target.pid is None else cpu.seconds(target.pid)
            stolen_s = cpu.stolen_seconds()
            wall_s = await load.drive(seconds or cell.seconds)
    except TimeoutError:
        reason = f"cut off after {limit_s:.0f} s, {load.tally.answers:,} answers"
        raise Failed(reason) from None
    finally:
        gc.enable()
        load.close()
    above_bytes = None
    if target.pid is not None and cpu_s is not None and target.idle_bytes is not None:
        cpu_s = cpu.seconds(target.pid) - cpu_s
        above_bytes = max(resident.peak_bytes(target.pid) - target.idle_bytes, 0)
    stolen = (cpu.stolen_seconds() - stolen_s) / (wall_s * (os.cpu_count() or 1))
    if load.tally.lost:
        tables.say(f"{load.tally.lost} lost, the first: {load.tally.first_loss}")
    return describe(load.tally, wall_s, cpu_s, above_bytes, stolen), wall_s


async def measure_stillness(target: Target, bench: Bench) -> Stillness:
    """Abort streams, then hold many. Raises Failed, OSError."""
    idle_bytes = None if target.pid is None else resident.shared_out(target.pid)
    speaking, silent = [
        describe_closing(await abort(target.route, bench.mock, bench.nonces, ask, ABORTS))
        for ask in (SPEAKING, SILENT)
    ]
    before = None if target.pid is None else resident.resident(target.pid).total
    held = Held(target.route, bench.nonces)
    try:
        await held.open(bench.options.held, bench.options.limit)
        streams = len(held.connections)
        kb_each = None
        if target.pid is not None and before is not None:
            await settle(target.pid)
            kb_each = (resident.resident(target.pid).total - before) / streams / 1e3
    finally:
        held.reset()
    idle_mb = None if idle_bytes is None else idle_bytes / 1e6
    return Stillness(idle_mb, streams, kb_each, speaking, silent)


# --- the command line --------------------------------------------------------------------------


def as_json(found: Found, options: argparse.Namespace) -> dict[str, object]:
    return {
        "bench": "gateway",
        "options": vars(options),
        "loads": [
            {
                "peer": name,
                **cell._asdict(),
                "interval_ms": cell.interval_ms,
                "median": asdict(median(measured.rounds)) if measured.rounds else None,
                **asdict(measured),
            }
            for (name, cell), measured in found.loads.items()
        ],
        "still": {name: asdict(still) for name, still in found.still.items()},
        "failures": found.failures,
    }


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", type=names(PROXIES), help=f"of {', '.join(PROXIES)}")
    parser.add_argument("--streams", type=numbers, help="at the same time, as 1,32,200,1000")
    parser.add_argument("--rounds", type=int, help="2 unless --quick")
    parser.add_argument("--limit", type=float, default=10.0, help="seconds for one load")
    parser.add_argument("--held", type=int, help="silent streams at the same time")
    parser.add_argument("--quick", action="store_true", help="one round of a small part")
    options = parser.parse_args(arguments)
    quick = options.quick
    options.peers = options.peers or list(QUICK_PEERS if quick else PROXIES)
    options.streams = options.streams or list(QUICK_STREAMS if quick else STREAMS)
    options.rounds = options.rounds or (1 if quick else 2)
    options.held = min(options.held or (1000 if quick else HELD_STREAMS), most_streams())
    return options


def main() -> None:
    options = parse(sys.argv[1:])
    described = machine.describe()
    cores = sorted(os.sched_getaffinity(0))
    is_apart = machine.pin(1)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(compare(options, cores[0]))
    tables.out(report(found, options.peers))
    tables.out(json.dumps(described | {"load_apart": is_apart} | as_json(found, options)))


if __name__ == "__main__":
    main()
