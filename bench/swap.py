"""Load, unload and swap of models of about a gigabyte, and what a running stream feels of it.

    python -m bench.swap                # a few minutes
    python -m bench.swap --quick        # one small round, to see that it runs

Through the real manager: every time is that between two of the state changes that it tells. Beside
them is what the machine needs to read the same bytes from its page cache.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import anyio

from bench import machine, tables
from bench.answers import quantile
from bench.environments import DATA
from bench.prompts import make_prompts
from bench.shapes import TITLES, ensure_model
from gateway import providers
from gateway.core.events import Event, TextDelta
from gateway.core.messages import GenerateRequest, Options
from gateway.core.models import ModelStateChange
from gateway.core.names import ModelRef
from gateway.core.states import ModelState
from gateway.core.telling import Tell
from gateway.hub.cache import FileLibrary
from gateway.providers.huggingface import HuggingFaceService
from gateway.settings import Settings

CHUNK_BYTES = 8 * 2**20
PROMPT_TOKENS = 64
CALM_TOKENS = 50
LONG_TOKENS = 4000
LIMIT_S = 900.0
LOOK_S = 0.02
STALLS = ("calm p99", "loading p99", "loading longest", "packing p99", "packing longest", "packing")


class Watch:
    """Remembers when models changed their state."""

    def __init__(self) -> None:
        self._changes: list[tuple[float, str, ModelState]] = []
        self._news = anyio.Event()

    def __call__(self, change: ModelStateChange) -> None:
        self._changes.append((time.perf_counter(), change.ref.model, change.state))
        self._news.set()
        self._news = anyio.Event()

    def last(self, model: str, state: ModelState) -> float:
        """Return when a model came into a state the last time."""
        return max(at for at, *change in self._changes if change == [model, state])

    def load_s(self, model: str) -> float:
        return self.last(model, ModelState.LOADED) - self.last(model, ModelState.LOADING)

    def unload_s(self, model: str) -> float:
        return self.last(model, ModelState.NOT_LOADED) - self.last(model, ModelState.UNLOADING)

    async def gone(self, model: str) -> None:
        """Wait until a model is unloaded, which must be the next thing to come."""
        while self._changes[-1][1:] != (model, ModelState.NOT_LOADED):
            await self._news.wait()


@asynccontextmanager
async def served(
    isolation: str, max_models: int
) -> AsyncIterator[tuple[HuggingFaceService, Watch]]:
    """Give the provider of models in this process (or in children of it) and its watch."""
    with tempfile.TemporaryDirectory() as folder:
        chosen: dict[str, Any] = {
            "data_dir": Path(folder),
            "hf_model_path": DATA / "models",
            "hf_device": "cpu",
            "hf_max_models": max_models,
        }
        if can_isolate():
            chosen["hf_isolation"] = isolation
        settings = Settings(**chosen)
        watch = Watch()
        async with anyio.create_task_group() as tasks:
            context = providers.ProviderContext(
                library=FileLibrary(settings.resolved_model_path, Path(folder), {}),
                observe=watch,
                task_group=tasks,
                clock=time.monotonic,
            )
            provider = providers.load("huggingface")(settings, context)
            assert isinstance(provider, HuggingFaceService), "it is the one that was named"
            yield provider, watch
            await provider.aclose()
            tasks.cancel_scope.cancel()


def can_isolate() -> bool:
    return "hf_isolation" in Settings.model_fields


async def ask(
    provider: HuggingFaceService, model: str, tokens: int, tell: Tell, keep_alive_s: float = -1
) -> None:
    request = GenerateRequest(
        id="bench",
        model=model,
        prompt=make_prompts(1, PROMPT_TOKENS, seed=1)[0],
        raw=True,
        options=Options(max_tokens=tokens, temperature=0),
        keep_alive_s=keep_alive_s,
    )
    await provider.answer(request, ModelRef("huggingface", model), tell)


async def token_times(
    provider: HuggingFaceService, model: str, tokens: int, keep_alive_s: float = -1
) -> list[float]:
    times = []

    def tell(events: Sequence[Event]) -> None:
        times.extend(time.perf_counter() for event in events if isinstance(event, TextDelta))

    await ask(provider, model, tokens, tell, keep_alive_s)
    if len(times) < tokens // 2:
        raise AssertionError(f"{tokens} tokens came in {len(times)} pieces")
    return times


# --- the measurements --------------------------------------------------------------------------


def read_s(folder: Path) -> float:
    """Return the seconds that it takes to read a model's files, which are in the page cache."""
    buffer = memoryview(bytearray(CHUNK_BYTES))
    began = time.perf_counter()
    for file in folder.glob("*.safetensors"):
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass
    return time.perf_counter() - began


async def swap(isolation: str, models: list[str], rounds: int) -> dict[str, list[float]]:
    """Swap A for B and back with room for one; the first load of each is not counted."""
    found: dict[str, list[float]] = {"load": [], "unload": [], "swap": [], "swap to token": []}
    async with served(isolation, max_models=1) as (provider, watch):
        for model in models:
            await token_times(provider, model, 2)
        for turn in range(2 * rounds):
            model, other = models[turn % 2], models[1 - turn % 2]
            began = time.perf_counter()
            (first, *_) = await token_times(provider, model, 2)
            load_s, unload_s = watch.load_s(model), watch.unload_s(other)
            # Room is made inside the load.
            found["swap"].append(load_s)
            found["load"].append(load_s - unload_s)
            found["unload"].append(unload_s)
            found["swap to token"].append(first - began)
    return found


async def stall(isolation: str, models: list[str], rounds: int) -> dict[str, list[float]]:
    """Stream from A, undisturbed and while B loads; the gaps between tokens in every round."""
    found: dict[str, list[float]] = {name: [] for name in STALLS}
    async with served(isolation, max_models=2) as (provider, watch):
        await token_times(provider, models[0], 2)
        await token_times(provider, models[1], 2, keep_alive_s=0)
        await watch.gone(models[1])
        await packed(provider, models[0])
        for _ in range(rounds):
            times = await token_times(provider, models[0], CALM_TOKENS)
            found["calm p99"].append(quantile(gaps(times, times[0], times[-1]), 0.99))
            times, packed_at = await stream_through_load(provider, models)
            began = watch.last(models[1], ModelState.LOADING)
            loaded_at = watch.last(models[1], ModelState.LOADED)
            during = gaps(times, began, loaded_at)
            found["loading p99"].append(quantile(during, 0.99))
            found["loading longest"].append(max(during))
            during = gaps(times, loaded_at, packed_at)
            found["packing p99"].append(quantile(during, 0.99))
            found["packing longest"].append(max(during))
            found["packing"].append(packed_at - loaded_at)
    return found


async def stream_through_load(
    provider: HuggingFaceService, models: list[str]
) -> tuple[list[float], float]:
    """Return when the tokens of A came while B was loaded, packed and unloaded again, and when it
    was packed."""
    times: list[float] = []
    is_speaking = anyio.Event()

    def tell(events: Sequence[Event]) -> None:
        if any(isinstance(event, TextDelta) for event in events):
            times.append(time.perf_counter())
            is_speaking.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask, provider, models[0], LONG_TOKENS, tell)
        await is_speaking.wait()
        await provider.load(ModelRef("huggingface", models[1]))
        await packed(provider, models[1])
        packed_at = time.perf_counter()
        await provider.unload(ModelRef("huggingface", models[1]))
        tasks.cancel_scope.cancel()
    return times, packed_at


async def packed(provider: HuggingFaceService, model: str) -> None:
    """Return once all weights of a model are packed."""
    while (await provider.status(ModelRef("huggingface", model)))[0].packing is not None:  # noqa: ASYNC110
        await anyio.sleep(LOOK_S)


def gaps(times: list[float], began: float, ended: float) -> list[float]:
    """Return the gaps that overlap a span of time."""
    return [
        later - earlier for earlier, later in pairwise(times) if later >= began and earlier <= ended
    ]


# --- the processes and what is said of them ----------------------------------------------------


def measure(isolation: str, models: list[str], rounds: int) -> dict[str, dict[str, list[float]]]:
    return {
        "swap": anyio.run(swap, isolation, models, rounds),
        "stall": anyio.run(stall, isolation, models, rounds),
    }


def measure_apart(options: argparse.Namespace, isolation: str) -> dict[str, dict[str, list[float]]]:
    """Measure one isolation in a process of its own, which nothing was loaded into before."""
    command = [sys.executable, "-m", "bench.swap", "--isolation", isolation]
    command += ["--rounds", str(options.rounds), "--shape", options.shape]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=LIMIT_S)
    found: dict[str, dict[str, list[float]]] = json.loads(done.stdout)
    return found


def report(found: dict[str, dict[str, dict[str, list[float]]]], limit_s: float) -> str:
    swaps = [
        [
            isolation,
            *(f"{median(values):.3f} ({median(values) / limit_s:.1f}x)" for values in by.values()),
        ]
        for isolation, by in ((name, kinds["swap"]) for name, kinds in found.items())
    ]
    stalls = [
        [isolation, *(f"{median(by[name]) * 1e3:.0f}" for name in STALLS)]
        for isolation, by in ((name, kinds["stall"]) for name, kinds in found.items())
    ]
    return "\n\n".join(
        [
            tables.markdown(
                ["models live in", "load s", "unload s", "swap s", "to token s"], swaps
            ),
            f"In brackets: times the {limit_s:.3f} s that reading the same bytes takes.",
            tables.markdown(
                [
                    "models live in",
                    "gap p99 ms",
                    "p99 while loading",
                    "longest",
                    "p99 while packing",
                    "longest",
                    "packing takes ms",
                ],
                stalls,
            ),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="0.5b", choices=TITLES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--isolation", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.rounds = 1 if options.quick else options.rounds
    folders = [
        ensure_model(options.shape, DATA / "models" / name, seed)
        for seed, name in enumerate((options.shape, f"{options.shape}-other"))
    ]
    models = [folder.name for folder in folders]
    if options.isolation:
        sys.stdout.write(json.dumps(measure(options.isolation, models, options.rounds)))
        return
    reads = [read_s(folder) for _ in range(1 + options.rounds) for folder in folders]
    limit_s = median(reads[len(folders) :])
    kinds = ("thread", "process") if can_isolate() else ("thread",)
    found = {kind: measure_apart(options, kind) for kind in kinds}
    tables.out(report(found, limit_s))
    description = {"bench": "swap", **machine.describe(), "shape": options.shape}
    tables.out(json.dumps({**description, "read_s": limit_s, "results": found}))


if __name__ == "__main__":
    main()
