"""The real manager over real tiny models, driven at random: what must hold, whatever happens.

Never over the budget or the count, and never less counted than the models hold; never a leased or
pinned model evicted, an answer for everybody who waits and every stream, and nothing left behind.
"""

from contextlib import ExitStack, aclosing, suppress
from pathlib import Path

import anyio
import msgspec
import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from gateway.core.errors import (
    ContextLengthExceeded,
    GatewayError,
    ModelLoadFailed,
    ModelUnloaded,
    NoRoom,
    Overloaded,
)
from gateway.core.events import Finished, TextDelta
from gateway.core.loading import ConfigChange, LoadConfig
from gateway.core.models import LocalModel
from gateway.core.names import ModelRef
from gateway.core.states import ModelState
from gateway.engine.decoding.state import held_bytes
from gateway.engine.engine import Engine, TransformersEngine
from gateway.engine.files.needs import estimate_load
from gateway.engine.files.progress import LoadProgress
from gateway.engine.memory.budget import MemoryBudget, Share
from gateway.engine.opening import EngineSpec, open_engine
from gateway.engine.residents.residence import Residence
from tests.integration.engine.conftest import ask
from tests.integration.engine.house import A, B, C, House, keeping_house
from tests.tiny_models import build_model

D = ModelRef("huggingface", "d")
PLACE_WAIT_S = 30.0
PATIENCE_S = 30.0
refs = st.sampled_from([A, B, C, D])


class Visitor:
    """Somebody with a lease, or who waits for one, or who was told why not."""

    def __init__(self, ref: ModelRef) -> None:
        self.ref = ref
        self.scope = anyio.CancelScope()
        self.leave = anyio.Event()
        self.done = anyio.Event()
        self.residence: Residence | None = None
        self.error: GatewayError | None = None

    async def visit(self, house: House, files: LocalModel, keep_alive_s: float | None) -> None:
        try:
            with self.scope:
                async with house.manager.claim(self.ref, files, keep_alive_s) as claim:
                    await claim.ready()
                    self.residence = claim.residence
                    await self.leave.wait()
        except GatewayError as error:
            self.error = error
        finally:
            self.residence = None
            self.done.set()


class Listener(Visitor):
    """Somebody who streams an answer; `said` and `finished` are what came of it."""

    def __init__(self, ref: ModelRef, prompt: str, max_tokens: int) -> None:
        super().__init__(ref)
        self.request = ask(prompt, max_tokens=max_tokens)
        self.said = 0
        self.finished = False

    async def visit(self, house: House, files: LocalModel, keep_alive_s: float | None) -> None:
        try:
            with self.scope:
                async with (
                    house.manager.lease(self.ref, files, keep_alive_s) as engine,
                    aclosing(engine.stream(self.request)) as events,
                ):
                    async for event in events:
                        self.said += isinstance(event, TextDelta)
                        self.finished = isinstance(event, Finished)
        except GatewayError as error:
            self.error = error
        finally:
            self.done.set()


ASKED = [(1, 1), (20, 60), (150, 30), (20, 400)]
"""Words of a prompt, and the most tokens of its answer."""


class Watch:
    """Looks at every reservation and every step, in whichever thread it is made."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.refusals = 0
        self.busiest = 0

    async def open(self, spec: EngineSpec, progress: LoadProgress, share: Share) -> Engine:
        engine = await open_engine(spec, progress, share)
        assert isinstance(engine, TransformersEngine)
        scheduler = engine._scheduler
        step, cache = scheduler._step, scheduler._runner._cache  # type: ignore[attr-defined]

        def watched() -> None:
            self.busiest = max(self.busiest, scheduler.active)
            step()
            held = share.held_bytes - engine._memory_bytes
            there = held_bytes(cache._keys, cache._values)
            if held != there:
                self.faults.append(f"{spec.ref}: {held} bytes counted, {there} there")

        scheduler._step = watched  # type: ignore[method-assign]
        return engine

    def look_at(self, device: MemoryBudget) -> None:
        move = device._move

        def watched(share: Share, size_bytes: int) -> bool:
            moved = move(share, size_bytes)
            self.refusals += not moved
            if device.used_bytes > device.total_bytes:
                self.faults.append(f"{device.used_bytes} bytes of {device.total_bytes}")
            return moved

        device._move = watched  # type: ignore[method-assign]


class ManagerMachine(RuleBasedStateMachine):
    """Hypothesis's thread gives orders; the manager lives on the loop of a portal."""

    visitors = Bundle("visitors")
    folder: Path

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.portal = self.stack.enter_context(start_blocking_portal())
        size = (self.folder / "model.safetensors").stat().st_size
        files = LocalModel("tiny", str(self.folder), size)
        # One model and the load of another, which leaves their caches to compete.
        self.budget = size + estimate_load(files, LoadConfig())
        self.watch = Watch()
        self.house: House = self.stack.enter_context(
            self.portal.wrap_async_context_manager(
                keeping_house(
                    self.folder,
                    max_models=2,
                    budget=self.budget,
                    open_spec=self.watch.open,
                    place_wait_s=PLACE_WAIT_S,
                )
            )
        )
        self.watch.look_at(self.house.budgets.of("cpu"))
        self.broken: set[ModelRef] = set()
        self.shortened: set[ModelRef] = set()
        self.everybody: list[Visitor] = []
        self.evicted: list[str] = []
        self.orders: list[anyio.Event] = []
        self._watch_evictions()

    def _watch_evictions(self) -> None:
        placement = self.house.manager._placement
        evict = placement._evict

        def watched(residence: Residence) -> None:
            model = residence.place.model
            if residence.leases or model.queued or model.config.pinned:
                self.evicted.append(f"{model.ref}: {residence.leases} leases, {model.config}")
            evict(residence)

        placement._evict = watched

    def files(self, ref: ModelRef) -> LocalModel:
        if ref in self.broken:
            return msgspec.structs.replace(self.house.files, path="/nonexistent")
        return self.house.files

    def order(self, work, *arguments: object, **options: object) -> None:  # type: ignore[no-untyped-def]
        """Begin something that ends in its own time; only our own errors may come of it."""
        done = self.portal.call(anyio.Event)
        self.orders.append(done)

        async def run() -> None:
            with suppress(NoRoom, ModelLoadFailed, ModelUnloaded):
                await work(*arguments, **options)
            done.set()

        self.portal.start_task_soon(run)

    @rule(target=visitors, ref=refs, keep_alive_s=st.sampled_from([None, 0, 20, -1]))
    def come(self, ref: ModelRef, keep_alive_s: float | None) -> Visitor:
        visitor: Visitor = self.portal.call(Visitor, ref)
        self.everybody.append(visitor)
        self.portal.start_task_soon(visitor.visit, self.house, self.files(ref), keep_alive_s)
        return visitor

    @rule(target=visitors, ref=refs, asked=st.lists(st.sampled_from(ASKED), min_size=1, max_size=4))
    def listen(self, ref: ModelRef, asked: list[tuple[int, int]]) -> Visitor:
        for prompt, max_tokens in asked:
            listener: Listener = self.portal.call(Listener, ref, "a " * prompt, max_tokens)
            self.everybody.append(listener)
            self.portal.start_task_soon(listener.visit, self.house, self.files(ref), None)
        return listener

    @rule(visitor=consumes(visitors))
    def hear_out(self, visitor: Visitor) -> None:
        """Let a stream come to its end, if it is one that can."""
        if not isinstance(visitor, Listener):
            self.portal.call(visitor.leave.set)
            return

        async def wait() -> None:
            with anyio.fail_after(PATIENCE_S):
                while not visitor.done.is_set():
                    await self.house.clock.turn(PLACE_WAIT_S)
                    with anyio.move_on_after(0.05):
                        await visitor.done.wait()

        self.portal.call(wait)
        assert visitor.finished or visitor.error is not None

    @rule(visitor=consumes(visitors))
    def go(self, visitor: Visitor) -> None:
        self.portal.call(visitor.leave.set)

    @rule(visitor=consumes(visitors))
    def vanish(self, visitor: Visitor) -> None:
        self.portal.call(visitor.scope.cancel)

    @rule(ref=refs, pinned=st.booleans())
    def pin(self, ref: ModelRef, pinned: bool) -> None:
        self.portal.call(self.house.manager.configure, ref, ConfigChange(pinned=pinned))

    @rule(ref=refs, context_length=st.sampled_from([None, 64]))
    def load(self, ref: ModelRef, context_length: int | None) -> None:
        config = LoadConfig(context_length=context_length)
        if context_length is not None:
            self.shortened.add(ref)
        self.order(self.house.manager.load, ref, self.files(ref), config)

    @rule(ref=refs, force=st.booleans())
    def unload(self, ref: ModelRef, force: bool) -> None:
        self.order(self.house.manager.unload, ref, force=force)

    @rule(ref=refs)
    def break_or_mend(self, ref: ModelRef) -> None:
        self.broken ^= {ref}

    @rule(seconds=st.sampled_from([1, 25, 40]))
    def turn_the_clock(self, seconds: float) -> None:
        self.portal.call(self.house.clock.turn, seconds)

    @rule(ref=refs)
    def wait_until_nothing_loads(self, ref: ModelRef) -> None:
        async def wait() -> None:
            with anyio.fail_after(PATIENCE_S):
                while (model := self.house.manager._models.get(ref)) and (attempt := model.attempt):
                    await self.house.clock.turn(PLACE_WAIT_S)
                    with anyio.move_on_after(0.05):
                        await attempt.done.wait()

        self.portal.call(wait)

    @invariant()
    def all_is_well(self) -> None:
        self.portal.call(self.look)

    def look(self) -> None:
        places = list(self.house.manager._placement)
        assert self.watch.faults == []
        assert self.house.used_bytes <= self.budget
        assert len(places) <= 2
        assert self.evicted == []
        for visitor in self.everybody:
            residence = visitor.residence
            if residence is not None and not residence.forced:
                assert residence.engine is not None and residence.engine.alive
        for model in self.house.manager._models.values():
            assert model.queued >= 0
            assert (model.state is ModelState.LOADING) == (model.attempt is not None)
            assert (model.residence is not None) == (
                model.state in (ModelState.LOADED, ModelState.UNLOADING)
            )

    async def everybody_leaves(self) -> None:
        with anyio.fail_after(PATIENCE_S):
            for visitor in self.everybody:
                visitor.leave.set()
            for done in [*(visitor.done for visitor in self.everybody), *self.orders]:
                while not done.is_set():
                    await self.house.clock.turn(PLACE_WAIT_S)
                    with anyio.move_on_after(0.05):
                        await done.wait()
        for visitor in self.everybody:
            assert self.may_end_with(visitor)
            if isinstance(visitor, Listener) and not visitor.scope.cancel_called:
                assert visitor.finished or visitor.error is not None
        for model in self.house.manager._models.values():
            assert model.queued == 0
            assert model.residence is None or model.residence.leases == 0
            if (residence := model.residence) and not residence.unloading:
                # With nobody left the caches are gone, and what was counted for them.
                assert residence.engine is not None
                assert residence.place.share.held_bytes == residence.engine._memory_bytes

    def may_end_with(self, visitor: Visitor) -> bool:
        if isinstance(visitor.error, ContextLengthExceeded):
            return visitor.ref in self.shortened
        allowed = NoRoom | ModelLoadFailed | ModelUnloaded | Overloaded
        return visitor.error is None or isinstance(visitor.error, allowed)

    def teardown(self) -> None:
        try:
            self.portal.call(self.everybody_leaves)
            self.portal.call(self.look)
        finally:
            self.stack.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose cache soon takes more than its weights: 1 KB a token."""
    folder = tmp_path_factory.mktemp("machine") / "m"
    return build_model(folder, num_hidden_layers=4, max_position_embeddings=1024)


async def test_streams_of_several_models_share_what_there_is(folder: Path) -> None:
    watch = Watch()
    async with keeping_house(
        folder, max_models=2, open_spec=watch.open, by_hand=False, place_wait_s=60
    ) as house:
        device = house.budgets.of("cpu")
        watch.look_at(device)
        device.total_bytes = house.files.size_bytes + house.need_bytes
        listeners = [
            Listener(ref, "a " * prompt, max_tokens)
            for prompt, max_tokens in ASKED
            for ref in (A, B, C)
        ]
        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as tasks:
                for listener in listeners:
                    tasks.start_soon(listener.visit, house, house.files, None)
        assert watch.faults == []
        assert watch.refusals > 0 and watch.busiest > 1
        assert all(each.finished or isinstance(each.error, NoRoom) for each in listeners)
        assert sum(each.finished for each in listeners) > len(listeners) // 2


@pytest.mark.timeout(300)
def test_whatever_happens_the_manager_keeps_its_promises(folder: Path) -> None:
    ManagerMachine.folder = folder
    machine = ManagerMachine.TestCase
    machine.settings = settings(
        max_examples=12,
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    machine().runTest()
