"""What a served model takes, and what stays of it: ours and transformers serve.

    python -m bench.memory              # a few minutes
    python -m bench.memory --quick      # one cycle of a small load, to see that it runs

Servers as processes, read from outside. A cycle is a load, streams, and an unload: ours unloads
when its last reader leaves (`keep_alive` 0), transformers serve when it is told to by `/reset`.
"""

import argparse
import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
import anyio

from bench import machine, resident, tables
from bench.answers import check
from bench.environments import DATA
from bench.peers import (
    TITLES,
    Task,
    make_gateway,
    make_transformers,
    make_transformers_batching,
)
from bench.processes import Failed, ServerPeer
from bench.prompts import make_prompts
from bench.shapes import TITLES as SHAPE_TITLES
from bench.shapes import ensure_model

PROMPT_TOKENS = 128
LOOK_S = 0.5
"""Memory has settled when it did not change for so long."""
STILL_BYTES = 2**20
LIMIT_S = 240.0


@dataclass
class Cycle:
    """Bytes of the resident set after each step; peaks are within the step."""

    load_peak: int
    loaded: int
    streams_peak: int
    after_streams: int
    unloaded: int
    unloaded_anonymous: int


@dataclass
class Course:
    """One server from its start on: `idle` is before its first model."""

    idle: int
    cycles: list[Cycle]
    failure: str | None = None


async def follow(name: str, task: Task, options: argparse.Namespace) -> Course:
    make, unload = SERVERS[name]
    peer = make(task)
    course = Course(0, [])
    try:
        with anyio.fail_after(LIMIT_S):
            await peer.start()
            course.idle = await settled(peer.pid)
        for turn in range(options.cycles):
            with anyio.fail_after(LIMIT_S):
                course.cycles.append(await run_cycle(peer, unload, turn, options))
            tables.say(f"{name}: cycle {turn + 1}")
    except TimeoutError:
        course.failure = f"cut off after {LIMIT_S:.0f} s"
    except (Failed, aiohttp.ClientError) as error:
        course.failure = str(error)
    finally:
        await peer.stop()
    return course


async def run_cycle(
    peer: ServerPeer,
    unload: Callable[[ServerPeer], Awaitable[None]],
    turn: int,
    options: argparse.Namespace,
) -> Cycle:
    resident.reset_peak(peer.pid)
    await peer.run(make_prompts(1, 8, seed=0), 2)
    load_peak, loaded = resident.peak_bytes(peer.pid), await settled(peer.pid)
    resident.reset_peak(peer.pid)
    prompts = make_prompts(options.streams, PROMPT_TOKENS, seed=1 + turn)
    check(await peer.run(prompts, options.new_tokens), prompts, options.new_tokens)
    streams_peak, after_streams = resident.peak_bytes(peer.pid), await settled(peer.pid)
    await unload(peer)
    unloaded = await settled(peer.pid)
    anonymous = resident.resident(peer.pid).anonymous
    return Cycle(load_peak, loaded, streams_peak, after_streams, unloaded, anonymous)


async def settled(pid: int) -> int:
    """Return the resident bytes once they stand still."""
    last, now = -STILL_BYTES, resident.resident(pid).total
    while abs(now - last) >= STILL_BYTES:
        await anyio.sleep(LOOK_S)
        last, now = now, resident.resident(pid).total
    return now


async def unload_ours(peer: ServerPeer) -> None:
    body = {"model": peer.model, "prompt": " aaab", "max_tokens": 1, "keep_alive": 0}
    await post(f"{peer.url}/v1/completions", body)


async def unload_theirs(peer: ServerPeer) -> None:
    await post(f"{peer.url}/reset", {})


async def post(url: str, body: dict[str, Any]) -> None:
    async with aiohttp.ClientSession() as client, client.post(url, json=body) as reply:
        if not reply.ok:
            raise Failed(f"status {reply.status}: {(await reply.text())[:200]}")


def make_isolated(task: Task) -> ServerPeer:
    return make_gateway(task, GATEWAY_HF_ISOLATION="process")


SERVERS: dict[str, tuple[Callable[[Task], ServerPeer], Callable[[ServerPeer], Awaitable[None]]]] = {
    "gateway": (make_gateway, unload_ours),
    "isolated": (make_isolated, unload_ours),
    "serve": (make_transformers, unload_theirs),
    "serve-cb": (make_transformers_batching, unload_theirs),
}
NAMES = TITLES | {"isolated": "ours, the model in a process of its own"}


def report(courses: dict[str, Course], file_bytes: int) -> str:
    head = ["server", "cycle", "idle", "load peak", "loaded", "streams peak", "after", "unloaded"]
    rows = []
    for name, course in courses.items():
        for number, cycle in enumerate(course.cycles, start=1):
            steps = [course.idle, *asdict(cycle).values()]
            rows.append([NAMES[name], str(number), *(f"{step / 1e6:,.0f}" for step in steps)])
        if course.failure:
            rows.append([NAMES[name], course.failure, *[""] * 7])
    text = f"MB; the model's files have {file_bytes / 1e6:,.0f} MB."
    return tables.markdown([*head, "of it anonymous"], rows) + f"\n\n{text}"


async def compare(options: argparse.Namespace, task: Task) -> dict[str, Course]:
    return {name: await follow(name, task, options) for name in options.servers}


def main() -> None:
    options = parse()
    folder = ensure_model(options.shape, DATA / "models" / options.shape)
    context = PROMPT_TOKENS + options.new_tokens
    task = Task(folder, options.streams, context, options.cb_memory)
    courses = anyio.run(compare, options, task)
    file_bytes = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
    tables.out(f"{SHAPE_TITLES[options.shape]}, {options.streams} streams")
    tables.out(report(courses, file_bytes))
    described = {name: asdict(course) for name, course in courses.items()}
    found = {"file_bytes": file_bytes, "options": vars(options), "results": described}
    tables.out(json.dumps({"bench": "memory", **machine.describe(), **found}))


def parse() -> argparse.Namespace:
    from gateway.settings import Settings

    can_isolate = "hf_isolation" in Settings.model_fields
    usual = [name for name in SERVERS if name != "isolated" or can_isolate]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="0.5b", choices=SHAPE_TITLES)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--cycles", type=int, default=3)
    parser.add_argument("--servers", type=lambda text: text.split(","), default=usual)
    parser.add_argument(
        "--cb-memory",
        type=float,
        default=0.6,
        help="share of the machine's memory for the cache of serve-cb; 0.6 is its own default",
    )
    parser.add_argument("--quick", action="store_true", help="one cycle, two streams")
    options = parser.parse_args()
    if options.quick:
        options.cycles, options.streams, options.new_tokens = 1, 2, 8
    return options


if __name__ == "__main__":
    main()
