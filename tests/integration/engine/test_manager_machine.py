"""The real manager over real tiny models, driven at random: what must hold, whatever happens.

Never over the budget or the count, never a leased or pinned model evicted, an answer for everybody
who waits, and nothing left behind.
"""

import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path

import anyio
import msgspec
import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from gateway.core.errors import GatewayError, ModelLoadFailed, ModelUnloaded, NoRoom
from gateway.core.loading import ConfigChange, LoadConfig
from gateway.core.models import LocalModel
from gateway.core.names import ModelRef
from gateway.core.states import ModelState
from gateway.engine.residence import Residence
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


class ManagerMachine(RuleBasedStateMachine):
    """Hypothesis's thread gives orders; the manager lives on the loop of a portal."""

    visitors = Bundle("visitors")
    folder: Path

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.portal = self.stack.enter_context(start_blocking_portal())
        self.size = (self.folder / "model.safetensors").stat().st_size
        self.budget = 2 * self.size + self.size // 2
        self.house: House = self.stack.enter_context(
            self.portal.wrap_async_context_manager(
                keeping_house(
                    self.folder, max_models=2, budget=self.budget, place_wait_s=PLACE_WAIT_S
                )
            )
        )
        self.broken: set[ModelRef] = set()
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
        held = sum(place.share.held_bytes for place in places)
        assert self.house.used_bytes == held <= self.budget
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
            assert visitor.error is None or isinstance(
                visitor.error, NoRoom | ModelLoadFailed | ModelUnloaded
            )
        for model in self.house.manager._models.values():
            assert model.queued == 0
            assert model.residence is None or model.residence.leases == 0

    def teardown(self) -> None:
        try:
            self.portal.call(self.everybody_leaves)
            self.portal.call(self.look)
        finally:
            self.stack.close()


@pytest.mark.timeout(300)
def test_whatever_happens_the_manager_keeps_its_promises() -> None:
    with tempfile.TemporaryDirectory() as folder:
        ManagerMachine.folder = build_model(Path(folder) / "m", num_hidden_layers=1)
        machine = ManagerMachine.TestCase
        machine.settings = settings(
            max_examples=12,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        machine().runTest()
