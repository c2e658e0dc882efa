"""The real manager and an Ollama service in one ledger, driven at random.

Never over the budget, neither by the ledger nor by what is really there; no stream of anybody's
ends for somebody else's load, an answer for everybody, and nothing left behind.
"""

import asyncio
from contextlib import ExitStack, suppress
from pathlib import Path

import anyio
import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from gateway.core.errors import ModelUnloaded, NoRoom
from gateway.core.eviction import EvictionPolicy
from gateway.core.loading import ConfigChange
from gateway.core.names import ModelRef
from gateway.engine.memory.budget import Share
from tests.integration.engine.house import A, B
from tests.integration.engine.neighbours import MB, Neighbours, Reader, X, Y, Z, neighbours
from tests.integration.engine.test_manager_machine import Visitor
from tests.integration.ollama_peer import FOREVER, SOON
from tests.tiny_models import build_model

WAIT_S = 30.0
PATIENCE_S = 30.0
ours, theirs = st.sampled_from([A, B]), st.sampled_from([X, Y, Z])


class NeighboursMachine(RuleBasedStateMachine):
    """Hypothesis's thread gives orders; everything lives on the loop of a portal."""

    people = Bundle("people")
    folder: Path
    policy: EvictionPolicy = "lru"

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.portal = self.stack.enter_context(start_blocking_portal())
        # Room for two models of Ollama and none of ours, or for one and both of ours.
        self.total = 20 * MB
        opened = neighbours(self.folder, self.total, wait_s=WAIT_S, policy=self.policy, evict_s=0.5)
        self.both: Neighbours = self.stack.enter_context(
            self.portal.wrap_async_context_manager(opened)
        )
        self.faults: list[str] = []
        self.everybody: list[Reader | Visitor] = []
        self.orders: list[anyio.Event] = []
        self.look_at_reservations()
        self.portal.call(self.close_gates)

    def look_at_reservations(self) -> None:
        budget = self.both.budget
        move = budget._move

        def watched(share: Share, size_bytes: int) -> bool:
            moved = move(share, size_bytes)
            self.check()
            return moved

        budget._move = watched  # type: ignore[method-assign]

    def check(self) -> None:
        used, really = self.both.budget.used_bytes, self.both.really_held
        if used > self.total or really > self.total:
            self.faults.append(f"{used} bytes in the ledger, {really} held, of {self.total}")

    async def close_gates(self) -> None:
        for model in self.both.peer.models.values():
            model.gate = asyncio.Event()

    def order(self, work, *arguments: object) -> None:  # type: ignore[no-untyped-def]
        done = self.portal.call(anyio.Event)
        self.orders.append(done)

        async def run() -> None:
            with suppress(NoRoom, ModelUnloaded):
                await work(*arguments)
            done.set()

        self.portal.start_task_soon(run)

    @rule(target=people, ref=ours)
    def come(self, ref: ModelRef) -> Visitor:
        visitor: Visitor = self.portal.call(Visitor, ref)
        self.everybody.append(visitor)
        house = self.both.house
        self.portal.start_task_soon(visitor.visit, house, house.files, None)
        return visitor

    @rule(target=people, ref=theirs)
    def ask(self, ref: ModelRef) -> Reader:
        reader: Reader = self.portal.call(self.both.begin, ref)
        self.everybody.append(reader)
        return reader

    @rule(person=consumes(people))
    def vanish(self, person: Reader | Visitor) -> None:
        self.portal.call(person.scope.cancel)

    @rule(person=consumes(people))
    def leave(self, person: Reader | Visitor) -> None:
        if isinstance(person, Visitor):
            self.portal.call(person.leave.set)

    @rule(ref=theirs)
    def answer(self, ref: ModelRef) -> None:
        """Let those finish who read from a model of Ollama now."""

        async def pulse() -> None:
            gate = self.both.peer.models[ref.model].gate
            assert gate is not None
            gate.set()
            self.both.peer.models[ref.model].gate = asyncio.Event()

        self.portal.call(pulse)

    @rule(ref=ours, pinned=st.booleans())
    def pin(self, ref: ModelRef, pinned: bool) -> None:
        self.portal.call(self.both.house.manager.configure, ref, ConfigChange(pinned=pinned))

    @rule(ref=theirs)
    def unload(self, ref: ModelRef) -> None:
        self.order(self.both.ollama.unload, ref)

    @rule(ref=theirs, expires_at=st.sampled_from([SOON, FOREVER]))
    def be_used_by_others(self, ref: ModelRef, expires_at: str) -> None:
        async def use() -> None:
            if ref.model in self.both.peer.loaded:
                self.both.peer.loaded[ref.model] = expires_at

        self.portal.call(use)

    @rule(ref=theirs)
    def expire(self, ref: ModelRef) -> None:
        """Let Ollama unload a model by itself."""

        async def go() -> None:
            if not self.both.peer._running[ref.model]:
                self.both.peer.loaded.pop(ref.model, None)

        self.portal.call(go)

    @rule()
    def look(self) -> None:
        self.portal.call(self.both.settle)

    @rule(seconds=st.sampled_from([1, 11, 40]))
    def turn_the_clock(self, seconds: float) -> None:
        self.portal.call(self.both.house.clock.turn, seconds)

    @invariant()
    def all_is_well(self) -> None:
        self.portal.call(self.require_well)

    def require_well(self) -> None:
        self.check()
        assert self.faults == []
        for person in self.everybody:
            if isinstance(person, Visitor):
                residence = person.residence
                assert residence is None or (residence.engine and residence.engine.alive)
            elif person.started.is_set() and person.done.is_set():
                # Not that its model is loaded while it reads: Ollama may be through before it.
                assert person.finished or person.scope.cancel_called, person.error

    async def everybody_leaves(self) -> None:
        for person in self.everybody:
            if isinstance(person, Visitor):
                person.leave.set()
        for model in self.both.peer.models.values():
            assert model.gate is not None
            model.gate.set()
        with anyio.fail_after(PATIENCE_S):
            for person in self.everybody:
                await self.wait_for(person.done)
            # A model that was asked for after its unload stays until its time is over.
            self.both.peer.loaded.clear()
            for done in self.orders:
                await self.wait_for(done)
        for person in self.everybody:
            assert person.error is None or isinstance(person.error, NoRoom), person.error
            if isinstance(person, Reader) and not person.scope.cancel_called:
                assert person.finished or person.error is not None
        await self.both.settle()
        assert self.both.budget.used_bytes == self.both.really_held

    async def wait_for(self, done: anyio.Event) -> None:
        while not done.is_set():
            await self.both.house.clock.turn(WAIT_S)
            with anyio.move_on_after(0.05):
                await done.wait()

    def teardown(self) -> None:
        try:
            self.portal.call(self.everybody_leaves)
            self.portal.call(self.require_well)
        finally:
            self.stack.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("policy", ["lru", "lrfu"])
def test_whatever_happens_the_ledger_keeps_its_promises(
    tmp_path_factory: pytest.TempPathFactory, policy: EvictionPolicy
) -> None:
    folder = tmp_path_factory.mktemp("machine") / "m"
    NeighboursMachine.folder = build_model(folder, max_position_embeddings=1024)
    NeighboursMachine.policy = policy
    machine = NeighboursMachine.TestCase
    machine.settings = settings(
        max_examples=12,
        stateful_step_count=25,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    machine().runTest()
