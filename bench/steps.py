"""A bare step by compiled code and by torch's operators, in turns: no queue, no text.

python -m bench.steps               # both shapes, 1, 4 and 16 streams: about five minutes
python -m bench.steps --shape 135m --streams 1 --threads 1
python -m bench.steps --shape 135m --streams 1,16 --chunks 32,96     # a part of a prompt beside
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench import bandwidth, tables
from bench.arguments import names, numbers
from bench.environments import DATA
from bench.shapes import SHAPES, TITLES, ensure_model
from gateway.core.loading import LoadConfig
from gateway.engine.decoding.loaded import LoadedModel
from gateway.engine.decoding.runner import Feed
from gateway.engine.loading.loader import load_model
from gateway.engine.loading.room import EngineRoom
from gateway.engine.weights.compute import ComputeThread

if TYPE_CHECKING:
    # With it torch would come before it is said how its threads wait.
    from gateway.engine.weights.gemv import Gemv

PROMPT = 150


class PlainRoom(EngineRoom):
    """A room without compiled code."""

    def gemv(self) -> Gemv | None:
        return None


def load(room: EngineRoom, folder: Path) -> LoadedModel:
    loaded = load_model("bench", folder, LoadConfig(device="cpu"), room=room)
    while loaded.packing and not loaded.packing.is_done:
        loaded.packing.step()
    return loaded


def stepper(loaded: LoadedModel, streams: int, chunk: int) -> Callable[[], object]:
    """Return what does one step of sequences whose prompts are done, with so many first tokens of
    another's prompt."""
    runner = loaded.runner
    places = [runner.open() for _ in range(streams)]
    for row, place in enumerate(places):
        runner.run([Feed(place, [100 + row] * PROMPT)])

    def step() -> None:
        feeds = [Feed(place, [5]) for place in places]
        if not chunk:
            runner.run(feeds)
            return
        other = runner.open()
        runner.run([*feeds, Feed(other, [7] * chunk)])
        runner.release(other)

    return step


def measure(shape: str, streams: int, chunk: int, threads: int, rounds: int) -> list[list[str]]:
    folder = ensure_model(shape, DATA / "models" / shape)
    size = bandwidth.weight_bytes(folder)
    compute = ComputeThread(threads)
    rooms = {"torch": PlainRoom(compute), "compiled": EngineRoom(compute)}
    steps = {name: stepper(load(room, folder), streams, chunk) for name, room in rooms.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 3):
        for name, step in steps.items():
            began = time.perf_counter()
            compute.run(step)
            if turn >= 3:  # those before are tried both ways
                times[name].append(time.perf_counter() - began)
    compute.close()
    middle = {name: statistics.median(found) for name, found in times.items()}
    return [
        [
            TITLES[shape], str(streams), str(chunk), name, f"{middle[name] * 1e3:.1f}",
            f"{min(times[name]) * 1e3:.1f}", f"{streams / middle[name]:.0f}",
            f"{size / middle[name] / 1e9:.1f}", f"{middle['torch'] / middle[name]:.2f}x",
        ]
        for name in steps
    ]  # fmt: skip


def main() -> None:
    options = parse(sys.argv[1:])
    head = [
        "shape",
        "streams",
        "of a prompt",
        "way",
        "ms",
        "least ms",
        "tokens/s",
        "GB/s of weights",
        "is",
    ]
    rows = [
        row
        for shape in options.shape
        for streams in options.streams
        for chunk in options.chunks
        for row in measure(shape, streams, chunk, options.threads, options.rounds)
    ]
    tables.out(tables.markdown(head, rows))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", type=names(SHAPES), default=["135m", "0.5b"])
    parser.add_argument("--streams", type=numbers, default=[1, 4, 16])
    parser.add_argument("--chunks", type=numbers, default=[0], help="tokens of a prompt beside")
    parser.add_argument("--threads", type=int, default=0, help="0: as many as there are cores")
    parser.add_argument("--rounds", type=int, default=40)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
