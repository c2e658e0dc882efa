"""The lifecycle of models over real tiny ones: pins, expiry, unloads, plans, waiting, configs."""

import weakref
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
import pytest

from gateway.core.errors import (
    EngineFailed,
    ModelLoadFailed,
    ModelTooLarge,
    ModelUnloaded,
    NoRoom,
    ShuttingDown,
)
from gateway.core.events import Event, Waiting
from gateway.core.loading import ConfigChange, LoadConfig, ModelConfig
from gateway.core.messages import Options
from gateway.core.names import ModelRef
from gateway.core.states import ModelState
from gateway.engine.decoding.loaded import LoadedModel
from gateway.engine.loading.loader import choose_device
from tests.integration.engine.conftest import ask
from tests.integration.engine.house import A, B, C, House, keeping_house

OpenHouse = Callable[..., AbstractAsyncContextManager[House]]


@pytest.fixture
def open_house(llama_folder: Path) -> OpenHouse:
    return partial(keeping_house, llama_folder)


async def until(house: House, ref: ModelRef, state: ModelState) -> None:
    """Wait until a model is in that state."""
    while house.state_of(ref) is not state:
        await anyio.wait_all_tasks_blocked()


async def test_a_pinned_model_is_neither_evicted_nor_does_it_expire(open_house: OpenHouse) -> None:
    async with open_house(max_models=2) as house:
        await house.manager.load(A, house.files, pinned=True, keep_alive_s=5)
        await house.use(B)
        await house.use(C)
        assert house.resident == {A, C}
        await house.clock.turn(100)
        assert house.state_of(A) is ModelState.LOADED
        house.manager.configure(A, ConfigChange(pinned=False))
        await until(house, A, ModelState.NOT_LOADED)


async def test_when_only_pinned_models_are_in_the_way_the_answer_comes_at_once(
    open_house: OpenHouse,
) -> None:
    async with open_house(max_models=1, place_wait_s=1000) as house:
        await house.manager.load(A, house.files, pinned=True)
        with pytest.raises(NoRoom, match=r"pinned models: huggingface/a") as caught:
            await house.use(B)
        assert "unpin" in (caught.value.hint or "").lower()


async def test_an_idle_model_goes_when_its_time_is_over_and_the_clock_starts_with_the_last_lease(
    open_house: OpenHouse,
) -> None:
    async with open_house(keep_alive_s=10) as house:
        async with house.manager.lease(A, house.files):
            await house.clock.turn(50)
            async with house.manager.lease(A, house.files):
                pass
            await house.clock.turn(50)
            assert house.manager.statuses(A)[0].expires_in_s is None
        await house.clock.turn(9)
        assert house.state_of(A) is ModelState.LOADED
        assert house.manager.statuses(A)[0].expires_in_s == 1
        [resident] = house.manager.residents()
        assert resident.expires_at == house.clock.now + 1
        await house.clock.turn(1)
        await until(house, A, ModelState.NOT_LOADED)


async def test_use_puts_the_end_off_and_the_last_keep_alive_said_holds(
    open_house: OpenHouse,
) -> None:
    async with open_house(keep_alive_s=10) as house:
        await house.use(A)
        await house.clock.turn(9)
        await house.use(A, keep_alive_s=100)
        await house.use(A)
        await house.clock.turn(99)
        assert house.state_of(A) is ModelState.LOADED
        await house.use(A, keep_alive_s=-1)
        await house.clock.turn(10_000)
        assert house.state_of(A) is ModelState.LOADED
        await house.use(A, keep_alive_s=0)
        await until(house, A, ModelState.NOT_LOADED)
        await house.use(A)
        assert house.manager.statuses(A)[0].expires_in_s == 10


async def test_a_sooner_end_than_the_one_that_is_waited_for_is_kept(open_house: OpenHouse) -> None:
    async with open_house(max_models=2) as house:
        await house.use(A, keep_alive_s=1000)
        await house.use(B, keep_alive_s=10)
        await house.clock.turn(10)
        await until(house, B, ModelState.NOT_LOADED)
        house.manager.configure(A, ConfigChange(keep_alive_s=20))
        await house.clock.turn(10)
        await until(house, A, ModelState.NOT_LOADED)


async def test_an_unload_waits_for_streams_and_who_comes_meanwhile_gets_the_model_anew(
    open_house: OpenHouse,
) -> None:
    async with open_house() as house, anyio.create_task_group() as tasks:
        async with house.manager.lease(A, house.files) as engine:
            tasks.start_soon(house.manager.unload, A)
            await anyio.wait_all_tasks_blocked()
            assert house.state_of(A) is ModelState.UNLOADING
            answers: list[str] = []

            async def come() -> None:
                answers.append(await house.use(A))

            tasks.start_soon(come)
            await anyio.wait_all_tasks_blocked()
            status = house.manager.statuses(A)[0]
            assert (status.leases, status.queued) == (1, 1)
            events = [event async for event in engine.stream(ask(max_tokens=3))]
            assert events and not answers
        while not answers:
            await anyio.wait_all_tasks_blocked()
        assert house.loads == [A, A]
        await house.manager.unload(A)
        assert house.state_of(A) is ModelState.NOT_LOADED


async def test_a_forced_unload_ends_streams_with_a_typed_error(open_house: OpenHouse) -> None:
    async with open_house() as house:
        await house.manager.load(A, house.files)
        started, seen = anyio.Event(), []

        async def stream() -> None:
            with pytest.raises(ModelUnloaded, match="huggingface/a was unloaded"):
                async with (
                    house.manager.lease(A, house.files) as engine,
                    aclosing(engine.stream(ask(max_tokens=900))) as events,
                ):
                    async for event in events:
                        started.set()
                        seen.append(event)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream)
            await started.wait()
            await house.manager.unload(A, force=True)
            assert house.state_of(A) is ModelState.NOT_LOADED
            assert house.used_bytes == 0
        assert len(seen) < 900


async def test_a_forced_unload_does_not_wait_for_a_reader_who_does_not_read(
    open_house: OpenHouse,
) -> None:
    async with open_house() as house:
        said: list[Event] = []
        with pytest.raises(ModelUnloaded, match="huggingface/a was unloaded"):
            async with (
                house.manager.lease(A, house.files) as engine,
                aclosing(engine.stream(ask(max_tokens=900))) as events,
            ):
                said.append(await anext(events))
                weights = weakref.ref(engine._loaded.model)
                # Nobody reads while the model goes: not even the one who has it unloaded.
                with anyio.fail_after(20):
                    await house.manager.unload(A, force=True)
                assert house.state_of(A) is ModelState.NOT_LOADED
                assert (house.used_bytes, house.manager.residents()) == (0, [])
                assert weights() is None
                assert await house.use(A)
                async for event in events:
                    said.append(event)
        assert 1 < len(said) < 200
        assert house.manager.statuses(A)[0].leases == 0
        assert house.states_of(A)[-1] is ModelState.LOADED


async def test_who_holds_a_claim_on_a_model_that_was_taken_away_gets_a_typed_error(
    open_house: OpenHouse,
) -> None:
    async with open_house() as house:
        with pytest.raises(ModelUnloaded):
            async with house.manager.claim(A, house.files) as claim:
                engine = await claim.ready()
                await house.manager.unload(A, force=True)
                with pytest.raises(EngineFailed):
                    await anext(engine.stream(ask()))
                _ = claim.engine


async def test_an_unload_cancels_a_load_for_everybody_who_waits_for_it(
    open_house: OpenHouse,
) -> None:
    async with open_house() as house:
        house.gate.clear()
        told: list[str] = []

        async def wait() -> None:
            with pytest.raises(ModelUnloaded, match="cancelled") as caught:
                await house.use(A)
            told.append(caught.value.message)

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(wait)
            await house.began.wait()
            tasks.start_soon(house.manager.unload, A)
            while len(told) < 3:
                await anyio.wait_all_tasks_blocked()
            # They know at once; the thread that loads is not done yet.
            assert house.state_of(A) is ModelState.LOADING
            house.gate.set()
        assert house.states_of(A) == [ModelState.LOADING, ModelState.NOT_LOADED]
        assert house.used_bytes == 0
        await house.use(A)


async def test_a_failed_model_is_forgotten_by_an_unload(
    open_house: OpenHouse, tmp_path: Path
) -> None:
    async with open_house() as house:
        house.files = msgspec.structs.replace(house.files, path=str(tmp_path))
        with pytest.raises(ModelLoadFailed):
            await house.use(A)
        [status] = house.manager.statuses(A)
        assert status.state is ModelState.FAILED
        assert isinstance(status.error, ModelLoadFailed)
        assert status.error.__traceback__ is None
        await house.manager.unload(A)
        assert house.manager.statuses(A)[0].error is None


async def test_a_load_waits_for_a_model_in_use_and_the_client_sees_it(
    open_house: OpenHouse,
) -> None:
    async with open_house(max_models=1, place_wait_s=30) as house:
        waits: list[Event] = []

        async def come() -> None:
            async with house.manager.claim(B, house.files) as claim:
                async with aclosing(claim.waits()) as told:
                    async for waiting in told:
                        waits.append(waiting)
                assert claim.engine.alive

        async with anyio.create_task_group() as tasks, house.manager.lease(A, house.files):
            tasks.start_soon(come)
            while Waiting("queued", position=1) not in waits:
                await anyio.wait_all_tasks_blocked()
            await house.clock.turn(29)
            assert house.state_of(B) is ModelState.LOADING
        assert house.resident == {B}
        assert house.loads == [A, B]


async def test_who_waits_too_long_for_a_place_is_told_so(open_house: OpenHouse) -> None:
    async with open_house(max_models=1, place_wait_s=30) as house:
        async with house.manager.lease(A, house.files), anyio.create_task_group() as tasks:

            async def come() -> None:
                with pytest.raises(NoRoom, match="in use: huggingface/a"):
                    await house.use(B)

            tasks.start_soon(come)
            await anyio.wait_all_tasks_blocked()
            assert house.state_of(B) is ModelState.LOADING
            await house.clock.turn(30)
        assert house.state_of(B) is ModelState.FAILED
        await house.use(B)


async def test_a_waiting_load_does_not_hold_up_who_needs_no_place(open_house: OpenHouse) -> None:
    async with open_house(max_models=1, place_wait_s=30) as house:
        async with house.manager.lease(A, house.files), anyio.create_task_group() as tasks:
            tasks.start_soon(house.use, B)
            await anyio.wait_all_tasks_blocked()
            assert await house.use(A)
            assert house.loads == [A]
            tasks.cancel_scope.cancel()
        # Nobody waits for B any more, so it is not loaded when A's place is free.
        await anyio.wait_all_tasks_blocked()
        assert house.resident == {A}
        assert house.state_of(B) is ModelState.NOT_LOADED


async def test_a_plan_is_what_happens(open_house: OpenHouse, llama: LoadedModel) -> None:
    size = llama.memory_bytes
    async with open_house(max_models=9) as house:
        house.budgets.of("cpu").total_bytes = size + house.need_bytes
        await house.load_all([A, B])
        plan = await house.manager.plan(C, house.files)
        assert plan.fits and not plan.already_loaded
        assert plan.evictions == (A,)
        assert plan.need_bytes == house.need_bytes
        assert plan.budget_bytes == size + house.need_bytes
        assert plan.free_bytes == plan.budget_bytes - house.used_bytes
        assert house.resident == {A, B}
        await house.manager.load(C, house.files)
        assert house.resident == {B, C}
        again = await house.manager.plan(C, house.files)
        assert again.already_loaded and again.evictions == ()
        # A load takes more than the model in the end.
        assert house.used_bytes == 2 * size < 2 * house.need_bytes


async def test_a_plan_that_cannot_be_says_why_and_so_does_the_load(open_house: OpenHouse) -> None:
    async with open_house(max_models=1) as house, house.manager.lease(A, house.files):
        plan = await house.manager.plan(B, house.files)
        assert (plan.fits, plan.evictions) == (False, ())
        assert plan.reason is not None and "in use: huggingface/a" in plan.reason
        with pytest.raises(NoRoom) as caught:
            await house.use(B)
        assert caught.value.message == plan.reason
    async with open_house(budget=1000) as house:
        plan = await house.manager.plan(A, house.files)
        assert plan.is_too_large and plan.reason is not None
        with pytest.raises(ModelTooLarge) as too_large:
            await house.use(A)
        assert too_large.value.message == plan.reason


async def test_a_config_outlives_its_model_and_says_when_it_takes_a_reload(
    open_house: OpenHouse,
) -> None:
    async with open_house() as house:
        change = ConfigChange(
            load=LoadConfig(dtype="bfloat16", context_length=64), defaults=Options(temperature=1.5)
        )
        assert not house.manager.configure(A, change).requires_reload
        await house.use(A)
        assert house.configs == [change.load]
        float32 = ConfigChange(load=LoadConfig(dtype="float32"))
        assert house.manager.configure(A, float32).requires_reload
        assert house.manager.statuses(A)[0].requires_reload
        await house.use(A)
        assert len(house.loads) == 1
        await house.manager.unload(A)
        report = house.manager.config(A)
        assert report.config.defaults.temperature == 1.5
        assert report.config.load.dtype == "float32" and not report.requires_reload


async def test_loading_in_another_way_loads_anew_once_the_streams_are_done(
    open_house: OpenHouse,
) -> None:
    async with open_house() as house:
        other = LoadConfig(dtype="bfloat16")
        await house.manager.load(A, house.files)
        async with anyio.create_task_group() as tasks, house.manager.lease(A, house.files):
            tasks.start_soon(house.manager.load, A, house.files, other)
            await anyio.wait_all_tasks_blocked()
            assert house.loads == [A]
        assert house.configs[-1] == other and house.loads == [A, A]
        await house.manager.load(A, house.files)
        assert house.loads == [A, A]


async def test_two_who_want_it_loaded_in_different_ways_both_come_to_an_end(
    open_house: OpenHouse,
) -> None:
    async with open_house() as house:
        house.gate.clear()
        async with anyio.create_task_group() as tasks:
            for dtype in ("float32", "bfloat16"):
                config = LoadConfig(dtype=dtype)  # type: ignore[arg-type]
                tasks.start_soon(house.manager.load, A, house.files, config)
            await house.began.wait()
            house.gate.set()
        assert house.configs[-1].dtype == house.manager.config(A).config.load.dtype
        assert len(house.loads) <= 2


async def test_a_shorter_context_is_kept(open_house: OpenHouse) -> None:
    async with open_house() as house:
        await house.manager.load(A, house.files, LoadConfig(context_length=8))
        with pytest.raises(Exception, match="context is 8 tokens"):
            await house.use(A)


async def test_the_way_of_a_load_is_seen_as_a_fraction_of_its_bytes(
    open_house: OpenHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_house() as house:
        seen: list[float | None] = []
        open_spec = house.open_spec

        async def watch(spec, progress, share):  # type: ignore[no-untyped-def]
            over = progress.over

            def watched(*arguments):  # type: ignore[no-untyped-def]
                for item in over(*arguments):
                    yield item
                    seen.append(progress.fraction or 0.0)

            monkeypatch.setattr(progress, "over", watched)
            engine = await open_spec(spec, progress, share)
            seen.append(progress.fraction)
            return engine

        house.open_spec = watch
        await house.use(A)
    assert seen == sorted(seen)
    assert len(set(seen)) > 5
    assert 0 < seen[1] < 1 and seen[-1] == 1.0


async def test_a_second_load_knows_how_long_it_takes(open_house: OpenHouse) -> None:
    async with open_house() as house:
        house.gate.clear()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(house.use, A)
            await house.began.wait()
            assert house.manager.statuses(A)[0].eta_s is None
            await house.clock.turn(8)
            house.gate.set()
        await house.manager.unload(A)
        house.gate.clear()
        house.began = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(house.use, A)
            await house.began.wait()
            await house.clock.turn(3)
            assert house.manager.statuses(A)[0].eta_s == 5
            house.gate.set()


async def test_a_cache_that_grows_makes_idle_models_go_and_never_those_in_use(
    open_house: OpenHouse, llama: LoadedModel
) -> None:
    size = llama.memory_bytes
    async with open_house(max_models=9) as house:
        # The last of them has just the room to load, and what that leaves is free.
        budget = house.budgets.of("cpu")
        budget.total_bytes = 2 * size + house.need_bytes
        spare = budget.total_bytes - 3 * size
        await house.load_all([A, B, C])
        share = house.shares[C]
        async with house.manager.lease(C, house.files), house.manager.lease(B, house.files):
            assert await anyio.to_thread.run_sync(share.reserve, spare - 40)
            assert not await anyio.to_thread.run_sync(share.reserve, size)
            await until(house, A, ModelState.NOT_LOADED)
            assert await anyio.to_thread.run_sync(share.reserve, size)
            assert house.manager.statuses(C)[0].memory_bytes == 2 * size + spare - 40
            assert not await anyio.to_thread.run_sync(share.reserve, size)
            await anyio.wait_all_tasks_blocked()
            assert house.resident == {B, C}
            share.release(size + spare - 40)
        assert house.used_bytes == 2 * size


async def test_who_closes_ends_the_wait_for_a_load(open_house: OpenHouse) -> None:
    async with (
        open_house(max_models=1, place_wait_s=1000) as house,
        house.manager.lease(A, house.files),
        anyio.create_task_group() as tasks,
    ):

        async def come() -> None:
            with pytest.raises(ShuttingDown):
                await house.use(B)

        tasks.start_soon(come)
        await anyio.wait_all_tasks_blocked()
        await house.manager.aclose()


async def test_a_load_by_hand_makes_the_config_true(open_house: OpenHouse) -> None:
    async with open_house() as house:
        await house.use(A)
        other = LoadConfig(context_length=64)
        house.manager.configure(A, ConfigChange(load=other))
        assert not (await house.manager.plan(A, house.files)).already_loaded
        await house.manager.load(A, house.files)
        assert house.configs[-1] == other and house.loads == [A, A]


@pytest.mark.parametrize("budget", [1000, 10**9])
async def test_a_load_that_is_refused_leaves_the_config_as_it_was(
    open_house: OpenHouse, budget: int
) -> None:
    error = ModelTooLarge if budget == 1000 else NoRoom
    async with open_house(max_models=1, budget=budget) as house:
        house.manager.configure(A, ConfigChange(load=LoadConfig(context_length=64)))
        before = house.manager.config(A)
        async with AsyncExitStack() as stack:
            if error is NoRoom:
                await stack.enter_async_context(house.manager.lease(B, house.files))
            with pytest.raises(error):
                await house.manager.load(A, house.files, LoadConfig(dtype="bfloat16"), pinned=True)
        assert house.manager.config(A) == before
        assert not house.manager.statuses(A)[0].pinned


async def test_loads_that_fail_together_each_take_back_only_what_they_asked_for(
    open_house: OpenHouse,
) -> None:
    async with open_house(max_models=1, place_wait_s=30) as house:

        async def load(config: LoadConfig | None, pinned: bool | None) -> None:
            with pytest.raises(NoRoom):
                await house.manager.load(A, house.files, config, pinned=pinned)

        async with house.manager.lease(B, house.files), anyio.create_task_group() as tasks:
            tasks.start_soon(load, None, True)
            tasks.start_soon(load, LoadConfig(dtype="bfloat16"), None)
            await anyio.wait_all_tasks_blocked()
            during = house.manager.config(A).config
            assert (during.pinned, during.load.dtype) == (True, "bfloat16")
            house.manager.configure(A, ConfigChange(keep_alive_s=7))
            await house.clock.turn(30)
        # What was decided by itself meanwhile stays.
        assert house.manager.config(A).config == ModelConfig(keep_alive_s=7)


async def test_a_load_that_works_keeps_what_it_asked_for(open_house: OpenHouse) -> None:
    async with open_house(max_models=1) as house:
        wanted = LoadConfig(context_length=64)
        await house.manager.load(A, house.files, wanted, pinned=True)
        with pytest.raises(ModelLoadFailed):
            torn = msgspec.structs.replace(house.files, path="/nowhere")
            house.manager.configure(A, ConfigChange(pinned=False))
            await house.manager.load(A, torn, pinned=True)
        config = house.manager.config(A).config
        assert (config.load, config.pinned) == (wanted, False)


def test_a_device_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(ModelLoadFailed, match=r"no device cuda:99 .* it has cpu") as caught:
        choose_device("cuda:99")
    assert caught.value.hint == "Name one of these, or auto."
