"""A manager over real tiny models, what it was seen doing, and a gate that loads can wait at."""

import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread

from gateway.core.eviction import EvictionPolicy
from gateway.core.loading import LoadConfig
from gateway.core.models import LocalModel, ModelStateChange
from gateway.core.names import ModelRef
from gateway.core.states import ModelState, UnloadReason
from gateway.engine.engine import Engine
from gateway.engine.files.needs import estimate_load
from gateway.engine.files.progress import LoadProgress
from gateway.engine.memory.budget import DeviceBudgets, Share
from gateway.engine.memory.ledger import MemoryLedger
from gateway.engine.opening import EngineSpec, open_engine
from gateway.engine.residents.manager import HuggingFaceModelManager
from tests.hand_clock import HandClock
from tests.integration.engine.conftest import ask
from tests.told import collect

OpenSpec = Callable[[EngineSpec, LoadProgress, Share], Awaitable[Engine]]

A, B, C = (ModelRef("huggingface", name) for name in "abc")


class House:
    """`began` is set when a load is in its thread; while `gate` is not set it stays there."""

    def __init__(self, folder: Path, budget: int, open_spec: OpenSpec = open_engine) -> None:
        size = (folder / "model.safetensors").stat().st_size
        self.files = LocalModel("tiny", str(folder), size)
        self.open_spec = open_spec
        self.loads: list[ModelRef] = []
        self.configs: list[LoadConfig] = []
        self.changes: list[tuple[ModelRef, ModelState]] = []
        self.reasons: list[tuple[ModelRef, UnloadReason]] = []
        self.shares: dict[ModelRef, Share] = {}
        self.budgets = DeviceBudgets(lambda device: budget)
        self.clock = HandClock()
        self.ledger: MemoryLedger
        self.began = anyio.Event()
        self.gate = threading.Event()
        self.gate.set()
        self.manager: HuggingFaceModelManager

    async def open(
        self,
        ref: ModelRef,
        files: LocalModel,
        config: LoadConfig,
        progress: LoadProgress,
        share: Share,
    ) -> Engine:
        self.loads.append(ref)
        self.configs.append(config)
        self.shares[ref] = share
        self.began.set()
        assert await anyio.to_thread.run_sync(self.gate.wait, 30)
        spec = EngineSpec(ref, files, config, max_active=4, max_queue=4)
        return await self.open_spec(spec, progress, share)

    def observe(self, change: ModelStateChange) -> None:
        self.changes.append((change.ref, change.state))
        if change.reason is not None:
            self.reasons.append((change.ref, change.reason))

    def states_of(self, ref: ModelRef) -> list[ModelState]:
        return [state for changed, state in self.changes if changed == ref]

    def state_of(self, ref: ModelRef) -> ModelState:
        return self.manager.state_of(ref)[0]

    @property
    def resident(self) -> set[ModelRef]:
        return {resident.ref for resident in self.manager.residents()}

    @property
    def need_bytes(self) -> int:
        """What must be free for a load of the files."""
        return estimate_load(self.files, LoadConfig())

    @property
    def used_bytes(self) -> int:
        return self.budgets.of("cpu").used_bytes

    async def use(self, ref: ModelRef, keep_alive_s: float | None = None) -> str:
        async with self.manager.lease(ref, self.files, keep_alive_s) as engine:
            return (await collect(engine.stream(ask(max_tokens=2)))).text

    async def load_all(self, refs: Sequence[ModelRef]) -> None:
        for ref in refs:
            await self.manager.load(ref, self.files)


@asynccontextmanager
async def keeping_house(
    folder: Path,
    *,
    max_models: int = 2,
    budget: int = 10**9,
    by_hand: bool = True,
    open_spec: OpenSpec = open_engine,
    policy: EvictionPolicy = "lru",
    **options: float,
) -> AsyncIterator[House]:
    """A house that is left empty: no model and no byte stays behind. Its clock is turned by hand,
    or else the machine's own."""
    house = House(folder, budget, open_spec)
    clock = house.clock if by_hand else time.monotonic
    sleep = house.clock.sleep if by_hand else anyio.sleep
    house.ledger = MemoryLedger(house.budgets, policy=policy, clock=clock, sleep=sleep)
    async with anyio.create_task_group() as tasks:
        house.manager = HuggingFaceModelManager(
            open=house.open,
            choose_device=lambda config: "cpu",
            ledger=house.ledger,
            task_group=tasks,
            observe=house.observe,
            max_models=max_models,
            clock=clock,
            sleep=sleep,
            **options,
        )
        yield house
        house.gate.set()
        await house.manager.aclose()
        assert house.manager.residents() == []
        assert house.used_bytes == 0
