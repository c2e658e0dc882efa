"""A seeded storm over one engine: hostile options, readers that go, stall or come back, memory that
is refused, steps that break. The loop lives, every stream ends once, nothing stays taken.

A few hundred requests are part of every run; `make fuzz` raises a longer storm.
"""

import functools
import math
import random
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from gateway.core.errors import EngineFailed, GatewayError, InvalidRequest, NoRoom, Overloaded
from gateway.core.events import Event, Finished, Routed, Started, Waiting
from gateway.core.loading import LoadConfig
from gateway.core.messages import GenerateRequest, Message, Options, ResponseFormat
from gateway.engine import engine as engine_module
from gateway.engine.decoding import scheduler
from gateway.engine.decoding.loaded import LoadedModel
from gateway.engine.decoding.runner import BatchRunner
from gateway.engine.decoding.serial_runner import SerialRunner
from gateway.engine.engine import TransformersEngine
from gateway.engine.loading.loader import load_model
from tests.integration.engine.conftest import StartEngine, ask
from tests.integration.engine.ledger import Ledger
from tests.integration.engine.reference import generated_by_transformers
from tests.tiny_models import build_model
from tests.told import collect

CONTEXT = 256
READERS = 20
FAMILIES = {
    "llama": {"max_position_embeddings": CONTEXT},
    "gemma3_text": {
        "head_dim": 8,
        "sliding_window": 16,
        "max_position_embeddings": CONTEXT,
    },
    "gemma2": {"head_dim": 8, "sliding_window": 16, "max_position_embeddings": CONTEXT},
    "mamba": {"state_size": 4, "max_position_embeddings": CONTEXT},
}
LIMITS: dict[str, tuple[Any, ...]] = {
    "temperature": (0.0, 1e-300, 1e-4, 1.0, 2.0),
    "top_p": (1e-12, 0.5, 1.0),
    "top_k": (0, 1, 5, 258, 10_000, 2**31 - 1),
    "min_p": (0.0, 0.5, 1.0),
    "repetition_penalty": (0.01, 1.0, 10.0),
    "frequency_penalty": (-2.0, 0.5, 2.0),
    "presence_penalty": (-2.0, 0.5, 2.0),
    "seed": (0, 7, -(2**63), 2**64 - 1),
    "max_tokens": (1, 2, 60, 2**31 - 1),
    "stop": (("a",), ("\ufffd",), ("e", "\n", "  "), ("x" * 10_000,)),
    "stop_ids": ((), (0, 1, 2), tuple(range(50, 150))),
    "logprobs": (0, 1, 20, 259, 10**6),
    "logit_bias": (
        ((5, 100.0), (5, -100.0)),
        tuple((token, -100.0) for token in range(259)),
    ),
}
OUTSIDE: dict[str, tuple[Any, ...]] = {
    "temperature": (-1.0, math.nan, math.inf),
    "top_p": (0.0, 2.0, math.nan),
    "top_k": (-1, 2**80),
    "min_p": (2.0, math.nan),
    "repetition_penalty": (0.0, -1.0, math.nan),
    "frequency_penalty": (math.inf,),
    "presence_penalty": (math.nan,),
    "seed": (2**100,),
    "max_tokens": (0, -1),
    "stop": (("",),),
    "stop_ids": ((-1,), (10**9,), (2**80,)),
    "logprobs": (-1, -(10**9)),
    "logit_bias": (
        ((7, 1e38), (7, 1e38), (8, 3e38)),
        ((7, math.inf),),
        tuple((token, -math.inf) for token in range(259)),
        ((7, math.nan),),
        tuple((token, math.nan) for token in range(259)),
        ((-1, 1.0),),
        ((10**9, 1.0),),
    ),
}
PROMPTS = (
    "",
    "a",
    "<|im_end|>",
    "<|im_start|><|im_start|>",
    "é" * 20,
    "x" * (CONTEXT - 1),
    "x" * CONTEXT,
    "x" * 5000,
)
OUTCOMES = (InvalidRequest, EngineFailed, Overloaded, NoRoom)


class Weather:
    """Lets things fail now and then, until it is over."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.is_over = False

    def strikes(self, chance: float) -> bool:
        return not self.is_over and self._random.random() < chance


class FickleLedger(Ledger):
    """Refuses memory that it has."""

    def __init__(self, weather: Weather, room: int) -> None:
        super().__init__(room)
        self._weather = weather

    def reserve(self, size_bytes: int, *, is_needed: bool = True) -> bool:
        return not self._weather.strikes(0.2) and super().reserve(size_bytes, is_needed=is_needed)


def breaking(compute: Callable[..., Any], weather: Weather) -> Callable[..., Any]:
    """Return `compute` that now and then raises, after all its work."""

    @functools.wraps(compute)
    def broken(*args: Any, **kwargs: Any) -> Any:
        found = compute(*args, **kwargs)
        if weather.strikes(0.05):
            raise RuntimeError("out of memory, say")
        return found

    return broken


def any_options(rng: random.Random) -> Options:
    options = {name: rng.choice(values) for name, values in LIMITS.items() if rng.random() < 0.2}
    if rng.random() < 0.15:
        name = rng.choice(list(OUTSIDE))
        options[name] = rng.choice(OUTSIDE[name])
    return Options(**{"max_tokens": rng.randrange(1, 50), **options})


def any_request(rng: random.Random) -> GenerateRequest:
    text = rng.choice(PROMPTS) if rng.random() < 0.2 else "x" * rng.randrange(1, 200)
    form = ResponseFormat("json_object") if rng.random() < 0.05 else None
    asked = {"prompt": text, "raw": True}
    if rng.random() < 0.5:
        asked = {"messages": (Message.user(text),)}
    return GenerateRequest(
        id="r",
        model="tiny",
        options=any_options(rng),
        response_format=form,
        caller=rng.choice("abc"),
        **asked,
    )


def require_grammar(events: list[Event], *, is_whole: bool) -> None:
    """Check `Waiting* Started Delta* Finished`, or a beginning of it."""
    kinds = [type(event) for event in events]
    assert kinds.count(Started) <= 1 >= kinds.count(Finished)
    assert Routed not in kinds
    if Started in kinds:
        start = kinds.index(Started)
        assert set(kinds[:start]) <= {Waiting}
        assert Finished not in kinds[:-1]
    else:
        assert set(kinds) <= {Waiting}
    assert (Finished in kinds) == is_whole


async def read(engine: TransformersEngine, request: GenerateRequest, rng: random.Random) -> str:
    """Read a stream to its end, or part of it; return how it ended."""
    stays = rng.random() < 0.7
    until = 10**6 if stays else rng.randrange(20)
    stalls_at = rng.randrange(20)
    events: list[Event] = []
    try:
        async with aclosing(engine.stream(request)) as stream:
            async for event in stream:
                events.append(event)
                if len(events) > until:
                    return "left"
                if len(events) == stalls_at:
                    for _ in range(rng.randrange(300)):
                        await anyio.lowlevel.checkpoint()
    except GatewayError as error:
        assert isinstance(error, OUTCOMES), error
        require_grammar(events, is_whole=False)
        return error.code
    require_grammar(events, is_whole=True)
    return "finished"


async def storm(engine: TransformersEngine, count: int, seed: int) -> dict[str, int]:
    """Send `count` requests from many readers at once; return how often each end was met."""
    rng = random.Random(seed)
    ends: dict[str, int] = {}

    async def reader(share: int, own: random.Random) -> None:
        for _ in range(share):
            with anyio.CancelScope() as scope:
                if own.random() < 0.05:
                    # Cancelled before its first event, in whatever it waits for then.
                    scope.cancel()
                end = await read(engine, any_request(own), own)
                ends[end] = ends.get(end, 0) + 1

    with anyio.fail_after(500):
        async with anyio.create_task_group() as tasks:
            for _ in range(READERS):
                tasks.start_soon(reader, count // READERS, random.Random(rng.random()))
    return ends


async def weather_a_storm(
    folder: Path,
    loaded: LoadedModel,
    start_engine: StartEngine,
    monkeypatch: pytest.MonkeyPatch,
    *,
    count: int,
    seed: int,
) -> None:
    # Refusals are as frequent here as nowhere else: they need not last as well.
    monkeypatch.setattr(scheduler, "RELIEF_S", 0.01)
    weather = Weather(seed)
    monkeypatch.setattr(engine_module, "CHANNEL_EVENTS", 4)
    # Less than two of the longest sequences need.
    tokens = CONTEXT * 3 // 2
    if isinstance(loaded.runner, BatchRunner):
        room = tokens * loaded.runner._cache.token_bytes
        owner, name = loaded.runner, "_forward"
    else:
        assert isinstance(loaded.runner, SerialRunner)
        growth = loaded.runner._learn()
        room = tokens * growth.token_bytes + 3 * growth.fixed_bytes
        owner, name = loaded.model, "forward"
    memory = FickleLedger(weather, room)
    monkeypatch.setattr(owner, name, breaking(getattr(owner, name), weather))
    async with start_engine(
        loaded, max_active=5, max_queue=12, memory=memory, prompt_cache_bytes=2**16
    ) as engine:
        ends = await storm(engine, count, seed)
        assert engine.alive
        assert engine._scheduler.active == engine._scheduler.queued == 0
        assert memory.taken == loaded.runner.memory_bytes
        weather.is_over = True
        request = ask("What is left after the storm?", max_tokens=60)
        answer = await collect(engine.stream(request))
        assert answer.text == generated_by_transformers(folder, loaded, request)
    assert memory.taken == loaded.runner.memory_bytes == 0
    # Each way to end was met: else the storm would not be one.
    assert {"finished", "left", "invalid_request", "engine_failed"} <= set(ends), ends


@pytest.mark.parametrize("family", FAMILIES)
async def test_a_storm_ends_every_stream_once_and_leaves_the_engine_as_it_was(
    family: str, tmp_path: Path, start_engine: StartEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = build_model(tmp_path / "m", family=family, **FAMILIES[family])
    loaded = load_model(family, folder, LoadConfig(device="cpu"))
    await weather_a_storm(folder, loaded, start_engine, monkeypatch, count=200, seed=1)


@pytest.mark.fuzz
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(10))
async def test_a_long_storm(
    family: str,
    seed: int,
    tmp_path: Path,
    start_engine: StartEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = build_model(tmp_path / "m", family=family, **FAMILIES[family])
    loaded = load_model(family, folder, LoadConfig(device="cpu"))
    await weather_a_storm(folder, loaded, start_engine, monkeypatch, count=1000, seed=seed)
