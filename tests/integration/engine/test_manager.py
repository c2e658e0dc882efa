"""HuggingFaceModelManager over real tiny models: joined loads, leases, eviction, failures."""

import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_thread
import msgspec
import pytest

from gateway.core.errors import (
    EngineFailed,
    ModelLoadFailed,
    ModelTooLarge,
    NoRoom,
    ShuttingDown,
)
from gateway.core.models import LocalModel
from gateway.core.names import ModelRef
from gateway.core.states import ModelState
from gateway.engine.decoding.loaded import LoadedModel
from tests.integration.engine.conftest import ask
from tests.integration.engine.house import A, B, C, House, keeping_house
from tests.told import collect


@pytest.fixture
def open_house(llama_folder: Path) -> Callable[..., AbstractAsyncContextManager[House]]:
    return partial(keeping_house, llama_folder, by_hand=False)


async def test_a_model_is_loaded_once_and_stays(open_house) -> None:
    async with open_house() as house:
        assert await house.use(A) == await house.use(A)
        assert house.loads == [A]
        assert house.states_of(A) == [ModelState.LOADING, ModelState.LOADED]
        assert house.manager.state_of(A) == (ModelState.LOADED, None)


async def test_many_who_ask_at_once_share_one_load_and_one_leaving_disturbs_nobody(
    open_house,
) -> None:
    async with open_house() as house:
        house.gate.clear()
        answers: list[str] = []

        async def use() -> None:
            answers.append(await house.use(A))

        leaving = anyio.CancelScope()
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(use)
            tasks.start_soon(use_within, leaving, house)
            await house.began.wait()
            leaving.cancel()
            house.gate.set()
        assert leaving.cancelled_caught
        assert len(answers) == 3
        assert house.loads == [A]


async def use_within(scope: anyio.CancelScope, house: House) -> None:
    with scope:
        await house.use(A)


async def test_the_first_to_ask_may_leave_and_the_load_goes_on(open_house) -> None:
    async with open_house() as house:
        house.gate.clear()
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(house.use, A)
                while not house.loads:
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
        assert not scope.cancelled_caught
        house.gate.set()
        await house.use(A)
        assert house.loads == [A]


async def test_the_least_recently_used_model_makes_room(open_house) -> None:
    async with open_house(max_models=2) as house:
        for ref in (A, B, A, C):
            await house.use(ref)
        assert {resident.ref for resident in house.manager.residents()} == {A, C}
        assert house.states_of(B) == [
            ModelState.LOADING,
            ModelState.LOADED,
            ModelState.UNLOADING,
            ModelState.NOT_LOADED,
        ]
        await house.use(B)
        assert house.loads == [A, B, C, B]


async def test_bytes_make_room_too(open_house, llama: LoadedModel) -> None:
    async with open_house(max_models=9) as house:
        house.budgets.of("cpu").total_bytes = llama.memory_bytes + house.need_bytes
        for ref in (A, B, C):
            await house.use(ref)
        assert {resident.ref for resident in house.manager.residents()} == {B, C}


async def test_a_model_in_use_is_never_evicted(open_house) -> None:
    async with open_house(max_models=1) as house:
        async with house.manager.lease(A, house.files):
            with pytest.raises(NoRoom, match="huggingface/a"):
                await house.use(B)
            assert house.manager.state_of(A)[0] is ModelState.LOADED
            assert house.manager.state_of(B)[0] is ModelState.FAILED
        await house.use(B)


async def test_a_model_that_could_never_fit_says_what_it_needs(open_house) -> None:
    async with open_house(budget=1000) as house:
        with pytest.raises(ModelTooLarge, match=r"\d+ bytes.*1000 bytes"):
            await house.use(A)


async def test_what_was_measured_counts_not_what_was_promised(
    open_house, llama: LoadedModel
) -> None:
    async with open_house(budget=llama.memory_bytes - 1) as house:
        house.files = LocalModel("tiny", house.files.path, size_bytes=1)
        with pytest.raises(ModelTooLarge):
            await house.use(A)
        assert house.manager.residents() == []
        # The engine was there for a moment, and is gone.
        assert not [thread for thread in threading.enumerate() if thread.name == f"engine {A}"]


async def test_a_model_without_room_for_one_short_sequence_is_refused(
    open_house, llama: LoadedModel
) -> None:
    enough = llama.memory_bytes + llama.first_bytes
    async with open_house(budget=enough - 1) as house:
        with pytest.raises(ModelTooLarge):
            await house.use(A)
        assert house.loads == []
        # Where the files do not tell, it shows once it is loaded.
        house.files = LocalModel("tiny", house.files.path, size_bytes=1)
        with pytest.raises(ModelTooLarge, match=f"needs {enough} bytes.*{enough - 1} bytes"):
            await house.use(A)
        assert house.loads == [A]
        assert house.used_bytes == 0
        house.budgets.of("cpu").total_bytes = enough
        assert await house.use(A)
        assert house.used_bytes == llama.memory_bytes


async def test_a_failed_load_tells_every_waiter_and_may_be_tried_again(
    open_house, tmp_path: Path
) -> None:
    async with open_house() as house:
        good, house.files = house.files, LocalModel("broken", str(tmp_path), 1)
        for _ in range(2):
            with pytest.raises(ModelLoadFailed, match="no safetensors"):
                await house.use(A)
        state, message = house.manager.state_of(A)
        assert state is ModelState.FAILED
        assert message is not None and "no safetensors" in message
        house.files = good
        await house.use(A)
        assert house.loads == [A, A, A]


async def test_a_dead_engine_is_replaced(open_house) -> None:
    async with open_house() as house:
        async with house.manager.lease(A, house.files) as engine:
            await engine.aclose()
            with pytest.raises(EngineFailed):
                await collect(engine.stream(ask()))
        await house.use(A)
        assert house.loads == [A, A]
        assert house.states_of(A)[2:] == [
            ModelState.UNLOADING,
            ModelState.FAILED,
            ModelState.LOADING,
            ModelState.LOADED,
        ]


async def test_a_closing_manager_loads_nothing_more(open_house) -> None:
    async with open_house() as house:
        await house.use(A)
        await house.manager.aclose()
        with pytest.raises(ShuttingDown):
            await house.use(A)


async def test_a_defect_in_a_load_is_internal_and_not_shown(open_house) -> None:
    async with open_house() as house:
        house.open_spec = lambda *_: 1 / 0
        with pytest.raises(Exception, match="inside the gateway"):
            await house.use(A)


async def test_no_thread_is_left_behind(open_house) -> None:
    before = set(threading.enumerate())
    async with open_house() as house:
        await house.use(A)
        await house.use(B)
        assert len([t for t in threading.enumerate() if t.name.startswith("engine ")]) >= 2
    left = [t for t in set(threading.enumerate()) - before if t.name.startswith("engine ")]
    assert left == []


async def test_a_victim_that_is_leased_while_another_unloads_stays(open_house) -> None:
    async with open_house(max_models=2) as house:
        await house.use(A)
        await house.use(B)
        house.manager._placement._max_models = 1  # so that both must go
        engine = house.manager._models[A].residence.engine
        close, leased = engine.aclose, anyio.Event()

        async def close_when_b_is_leased() -> None:
            await leased.wait()
            await close()

        engine.aclose = close_when_b_is_leased
        async with anyio.create_task_group() as tasks:
            outcome: list[str] = []

            async def load_c() -> None:
                with pytest.raises(NoRoom):
                    await house.use(C)
                outcome.append("no room")

            tasks.start_soon(load_c)
            await anyio.wait_all_tasks_blocked()
            async with house.manager.lease(B, house.files) as in_use:
                leased.set()
                while not outcome:
                    await anyio.wait_all_tasks_blocked()
                assert in_use.alive
                assert (await collect(in_use.stream(ask(max_tokens=1)))).text is not None


async def test_of_cold_models_asked_for_at_once_the_first_is_served(open_house) -> None:
    served: list[ModelRef] = []
    async with open_house(max_models=1) as house:

        async def use(ref: ModelRef) -> None:
            with suppress(NoRoom):
                await house.use(ref)
                served.append(ref)

        async with anyio.create_task_group() as tasks:
            for ref in (A, B, C):
                tasks.start_soon(use, ref)
    # The others may find it busy; what only waits for its turn to load takes nobody's room.
    assert served[0] == A


async def test_a_load_that_nobody_waits_for_any_more_is_not_begun(open_house) -> None:
    async with open_house() as house:
        house.gate.clear()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(house.use, A)
            await house.began.wait()
            leaving = anyio.CancelScope()

            async def give_up() -> None:
                with leaving:
                    await house.use(B)

            tasks.start_soon(give_up)
            await anyio.wait_all_tasks_blocked()
            leaving.cancel()
            await anyio.wait_all_tasks_blocked()
            house.gate.set()
        assert house.loads == [A]
        assert house.states_of(B) == [ModelState.LOADING, ModelState.NOT_LOADED]
        await house.use(B)


async def test_replaced_files_are_loaded_anew(open_house) -> None:
    async with open_house() as house:
        await house.use(A)
        house.files = msgspec.structs.replace(house.files, changed_ns=1)
        async with house.manager.lease(A, house.files):
            other = msgspec.structs.replace(house.files, changed_ns=2)
            async with house.manager.lease(A, other):
                pass  # in use: the one that is there serves on
        assert house.loads == [A, A]


async def test_keep_alive_decides_how_long_an_idle_model_stays(open_house) -> None:
    async with open_house() as house:
        async with house.manager.lease(A, house.files, keep_alive_s=0):
            pass
        while house.manager.state_of(A)[0] is not ModelState.NOT_LOADED:
            await anyio.wait_all_tasks_blocked()
        async with house.manager.lease(A, house.files, keep_alive_s=-1):
            pass
        await anyio.wait_all_tasks_blocked()
        assert house.manager.state_of(A)[0] is ModelState.LOADED
        assert house.loads == [A, A]
