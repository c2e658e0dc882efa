"""A model answers before its weights are packed, and is packed while it answers."""

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
import torch

from gateway.core.loading import LoadConfig
from gateway.core.models import LocalModel
from gateway.core.names import ModelRef
from gateway.engine.decoding.loaded import LoadedModel
from gateway.engine.decoding.runner import Feed
from gateway.engine.engine import TransformersEngine
from gateway.engine.files.needs import estimate_load
from gateway.engine.files.progress import LoadProgress
from gateway.engine.loading.loader import load_model
from gateway.engine.loading.room import EngineRoom
from gateway.engine.memory.budget import MemoryBudget
from gateway.engine.opening import EngineSpec, open_engine
from gateway.engine.weights import packer, packing
from gateway.engine.weights.compute import Inline
from gateway.engine.weights.linear import PackedProduct, can_pack
from tests.integration.engine.conftest import ask
from tests.integration.engine.house import A, B, keeping_house
from tests.tiny_models import build_model
from tests.told import collect

REF = ModelRef("huggingface", "tiny")
# Its output layer is one with the embedding, which is what makes packing take more memory.
SIZES = {"hidden_size": 256, "intermediate_size": 512, "tie_word_embeddings": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("packing") / "m", dtype=torch.bfloat16, **SIZES)


@pytest.fixture
def loaded(folder: Path) -> LoadedModel:
    loaded = load_model("m", folder, LoadConfig(device="cpu"))
    if not can_pack(loaded.model):
        pytest.skip("this processor has no packed product for bfloat16")
    return loaded


class Gate(Inline):
    """Lets through one step each time it is told to; tells of each that comes."""

    def __init__(self) -> None:
        super().__init__(threads=1)
        self.steps = 0
        self.came = threading.Semaphore(0)
        self.may_go = threading.Semaphore(0)

    def run(self, work: Callable[[], Any], *, is_small: bool = False) -> Any:
        self.came.release()
        assert self.may_go.acquire(timeout=30)
        self.steps += 1
        return super().run(work, is_small=is_small)

    async def wait_for_step(self) -> None:
        assert await anyio.to_thread.run_sync(lambda: self.came.acquire(timeout=30))


def engine_of(loaded: LoadedModel, **options: Any) -> TransformersEngine:
    return TransformersEngine(REF, loaded, max_active=4, max_queue=4, **options)


def say(loaded: LoadedModel, place: Any, token: int) -> torch.Tensor:
    return loaded.runner.run([Feed(place, [token])])[0].float()


def test_a_sequence_goes_on_alike_while_the_model_is_packed(loaded: LoadedModel) -> None:
    runner, rest = loaded.runner, loaded.packing
    assert rest is not None and rest.fraction == 0
    packed, plain = runner.open(), runner.open()
    tokens = [3, 5, 8, 13, 21]
    expected = [say(loaded, plain, token) for token in tokens]
    found, fractions = [], []
    for token in tokens:
        found.append(say(loaded, packed, token))
        for _ in range(2):
            if not rest.is_done:
                rest.step()
                fractions.append(rest.fraction)
    while not rest.is_done:
        rest.step()
    assert fractions == sorted(set(fractions)) and rest.fraction == 1
    for mine, theirs in zip(found, expected, strict=True):
        scale = float(theirs.abs().max())
        torch.testing.assert_close(mine, theirs, rtol=5e-2, atol=5e-2 * scale)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is mapped")
def test_what_is_packed_needs_its_files_no_more(folder: Path, loaded: LoadedModel) -> None:
    assert str(folder) in Path("/proc/self/maps").read_text()
    assert loaded.packing is not None
    while not loaded.packing.is_done:
        loaded.packing.step()
    assert str(folder) not in Path("/proc/self/maps").read_text()
    place = loaded.runner.open()
    assert torch.isfinite(say(loaded, place, 7)).all()


def test_a_product_that_says_something_else_stays_plain(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(PackedProduct):
        def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
            return super().__call__(tensor) * 1.5

    place, expected = loaded.runner.open(), None
    expected = say(loaded, place, 7)
    loaded.runner.release(place)
    monkeypatch.setattr(packing, "PackedProduct", Wrong)
    assert loaded.packing is not None
    while not loaded.packing.is_done:
        loaded.packing.step()
    assert torch.equal(say(loaded, loaded.runner.open(), 7), expected)


async def test_a_stream_runs_through_the_packing(loaded: LoadedModel) -> None:
    gate = Gate()
    engine = engine_of(loaded, behind=gate)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(engine.finish)
        await gate.wait_for_step()
        assert engine.packing == 0
        answer = await collect(engine.stream(ask(max_tokens=4)))
        assert answer.usage.completion_tokens == 4
        gate.may_go.release(1000)
    assert engine.packing is None
    assert (await collect(engine.stream(ask(max_tokens=4)))).usage.completion_tokens == 4
    await engine.aclose()


async def test_an_unload_waits_for_one_product_and_not_for_all(loaded: LoadedModel) -> None:
    gate = Gate()
    engine = engine_of(loaded, behind=gate)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(engine.finish)
        await gate.wait_for_step()
        closing = anyio.Event()

        async def close() -> None:
            closing.set()
            await engine.aclose()

        tasks.start_soon(close)
        await closing.wait()
        gate.may_go.release()
    assert gate.steps == 1
    assert engine.packing is None


async def test_packing_waits_for_memory_and_never_takes_more_than_there_is(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packer, "RETRY_S", 0)
    budget = MemoryBudget(loaded.memory_bytes + 10**7)
    share, other = budget.open(REF, loaded.memory_bytes), budget.open(A, 10**7)
    assert share is not None and other is not None
    refused = anyio.Event()
    most = 0

    class Watched:
        def reserve(self, size_bytes: int, *, is_needed: bool = True) -> bool:
            nonlocal most
            assert not is_needed, "nobody is unloaded for it"
            granted = share.reserve(size_bytes, is_needed=is_needed)
            most = max(most, share.held_bytes)
            if not granted:
                anyio.from_thread.run_sync(refused.set)
            return granted

        def release(self, size_bytes: int) -> None:
            share.release(size_bytes)

    engine = engine_of(loaded, memory=Watched())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(engine.finish)
        await refused.wait()
        assert engine.packing == 0
        other.close()
    assert engine.packing is None
    assert most > loaded.memory_bytes == share.held_bytes
    await engine.aclose()


async def test_the_status_tells_how_far_a_model_is_packed(
    folder: Path, loaded: LoadedModel
) -> None:
    gate = Gate()

    async def open_gated(spec: EngineSpec, progress: LoadProgress, share: Any) -> Any:
        return await open_engine(spec, progress, share, room=EngineRoom(None, gate))

    async with keeping_house(folder, open_spec=open_gated) as house:
        await house.manager.load(A, house.files)
        await gate.wait_for_step()
        (status,) = house.manager.statuses(A)
        assert status.packing == 0
        assert status.memory_bytes > loaded.memory_bytes
        gate.may_go.release(1000)
        model = house.manager._models[A]
        with anyio.fail_after(30):
            while house.manager.statuses(A)[0].packing is not None:
                await model.changed.wait()
        (status,) = house.manager.statuses(A)
        assert status.memory_bytes == house.used_bytes == loaded.memory_bytes


async def test_models_that_replace_each_other_while_they_are_packed_leave_nothing(
    folder: Path, loaded: LoadedModel
) -> None:
    need = estimate_load(
        LocalModel("tiny", str(folder), (folder / "model.safetensors").stat().st_size), LoadConfig()
    )
    budget = need + loaded.memory_bytes // 2
    async with keeping_house(folder, budget=budget) as house:
        for ref in (A, B, A, B):
            assert await house.use(ref)
            assert house.used_bytes <= budget
            assert house.resident == {ref}
