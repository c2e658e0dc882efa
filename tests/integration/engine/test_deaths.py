"""Engines that die while nobody looks: the manager notices, says so, and gives the memory back."""

import os
import signal
import socket
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
from anyio.abc import UNIXSocketStream
from msgspec.structs import replace

from gateway.core.cards import ModelCard
from gateway.core.loading import LoadConfig
from gateway.core.models import LocalModel
from gateway.core.states import ModelState
from gateway.engine.child.__main__ import _Child
from gateway.engine.child.isolated import open_isolated
from gateway.engine.child.keeper import Keeper
from gateway.engine.child.link import Link
from gateway.engine.child.wire import decode_to_child
from gateway.engine.embedding.embedder import EmbeddingEngine
from gateway.engine.engine import Engine, TransformersEngine
from gateway.engine.files.progress import LoadProgress
from gateway.engine.opening import EngineSpec
from gateway.settings import child_environment
from tests.integration.engine.conftest import ask
from tests.integration.engine.house import A, House, keeping_house
from tests.tiny_models import build_encoder

DIED = [ModelState.LOADING, ModelState.LOADED, ModelState.UNLOADING, ModelState.FAILED]


def broken(*_: Any) -> None:
    raise RuntimeError("the loop is broken")


def kill(engine: Engine | None) -> None:
    """Let the engine die while it has nothing to do."""
    match engine:
        case TransformersEngine():
            engine._scheduler._has_work = broken  # type: ignore[assignment]
            engine._scheduler.wake()
        case EmbeddingEngine():
            worker = engine._worker
            worker._settle = lambda jobs: broken() if worker.alive else None  # type: ignore
            with worker._condition:
                worker._condition.notify()
        case Keeper():
            os.kill(engine.pid, signal.SIGKILL)
        case _:
            raise AssertionError(engine)


async def see_it_die(house: House) -> None:
    """Have an idle model die; ask the manager nothing, and be told by it."""
    await house.manager.load(A, house.files)
    engine = house.manager._models[A].residence.engine  # type: ignore[union-attr]
    assert house.used_bytes > 0
    kill(engine)
    with anyio.fail_after(20):
        while house.states_of(A) != DIED or house.used_bytes:
            await anyio.lowlevel.checkpoint()
    assert house.manager.statuses(A)[0].state is ModelState.FAILED
    assert house.manager.residents() == []
    assert house.manager._models[A].residence is None


async def test_a_worker_that_dies_is_noticed_at_once(llama_folder: Path) -> None:
    async with keeping_house(llama_folder) as house:
        await see_it_die(house)
        assert await house.use(A)


async def test_an_embedder_that_dies_is_noticed_at_once(tmp_path: Path) -> None:
    folder = build_encoder(tmp_path / "bert", pooling={"pooling_mode_mean_tokens": True})
    async with keeping_house(folder) as house:
        card = ModelCard("BertModel", "bert")
        house.files = replace(house.files, card=card)
        await see_it_die(house)


async def test_a_process_that_dies_is_noticed_at_once(llama_folder: Path) -> None:
    async with anyio.create_task_group() as tasks:
        opener = partial(open_isolated, task_group=tasks, environment=child_environment())
        async with keeping_house(llama_folder, budget=10**10, open_spec=opener) as house:
            await see_it_die(house)
            assert await house.use(A)


async def test_a_child_whose_engine_dies_ends_before_anybody_asks_it(llama_folder: Path) -> None:
    ours, theirs = socket.socketpair()
    files = LocalModel("tiny", str(llama_folder), 1, card=ModelCard("LlamaForCausalLM", "llama"))
    spec = EngineSpec(A, files, LoadConfig(device="cpu"), max_active=1, max_queue=1)
    async with (
        await UNIXSocketStream.from_socket(ours),
        await UNIXSocketStream.from_socket(theirs) as stream,
        anyio.create_task_group() as tasks,
    ):
        child = _Child(Link(stream, decode_to_child), tasks)
        await child._load(spec, 0, LoadProgress())
        tasks.start_soon(child.listen)
        await anyio.wait_all_tasks_blocked()
        kill(child._engine)
        # Its listening ends: were it to go on, the group would never be left.
        with anyio.fail_after(20):
            while not child._listening.cancelled_caught:
                await anyio.lowlevel.checkpoint()
        await child.aclose()


async def test_an_engine_that_dies_under_an_unload_does_not_hold_it_up(llama_folder: Path) -> None:
    async with (
        keeping_house(llama_folder) as house,
        anyio.create_task_group() as tasks,
        house.manager.lease(A, house.files) as engine,
    ):
        assert isinstance(engine, TransformersEngine)
        stream = engine.stream(ask(max_tokens=900))
        await anext(stream)
        tasks.start_soon(house.manager.unload, A)
        await anyio.wait_all_tasks_blocked()
        assert house.state_of(A) is ModelState.UNLOADING
        kill(engine)
        with anyio.fail_after(20):
            while house.state_of(A) is not ModelState.NOT_LOADED or house.used_bytes:
                await anyio.lowlevel.checkpoint()
        await stream.aclose()
