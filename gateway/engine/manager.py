"""HuggingFaceModelManager: which models are in memory, for whom, and who must go.

All state is touched on the event loop only, so there are no locks but the one that lets loads
happen one at a time. Weights move elsewhere: in threads, or in processes of their own.
"""

import gc
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from gateway.core.errors import (
    EngineFailed,
    GatewayError,
    Internal,
    ModelTooLarge,
    NoRoom,
    ShuttingDown,
)
from gateway.core.eviction import choose_victims
from gateway.core.models import LocalModel, ModelStateChange, Resident
from gateway.core.names import ModelRef
from gateway.core.ports import ModelObserver
from gateway.core.states import ModelState, require_transition
from gateway.engine.engine import Engine

logger = logging.getLogger(__name__)


class _Entry:
    """One model and what it is to the manager. `leases` counts those who wait for it, too."""

    def __init__(self, ref: ModelRef, files: LocalModel, state: ModelState) -> None:
        self.ref = ref
        self.files = files
        self.state = state
        self.engine: Engine | None = None
        self.error: GatewayError | None = None
        self.leases = 0
        self.last_used = 0.0
        self.keep_alive_s = -1.0
        self.settled = anyio.Event()
        self.gone = anyio.Event()

    @property
    def memory_bytes(self) -> int:
        return self.engine.memory_bytes if self.engine else self.files.size_bytes


class HuggingFaceModelManager:
    """Gives leases on loaded models.

    Many who ask for one model share one load, and none of them leaving disturbs it. A model that
    is leased is never evicted; room is made from the least recently used idle ones, by count and
    by bytes.
    """

    def __init__(
        self,
        *,
        open: Callable[[ModelRef, LocalModel], Awaitable[Engine]],
        task_group: TaskGroup,
        observe: ModelObserver,
        max_models: int,
        budget_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`open` loads a model, wherever it is to live; it must not block the event loop."""
        self._open = open
        self._tasks = task_group
        self._observe = observe
        self._max_models = max_models
        self._budget_bytes = budget_bytes
        self._clock = clock
        self._entries: dict[ModelRef, _Entry] = {}
        self._loading = anyio.Lock()
        self._under_way: _Entry | None = None
        self._closing = False

    def state_of(self, ref: ModelRef) -> tuple[ModelState, str | None]:
        """Return a model's state and, where it failed, why."""
        entry = self._entries.get(ref)
        if entry is None:
            return ModelState.NOT_LOADED, None
        return entry.state, entry.error.message if entry.error else None

    def residents(self) -> list[Resident]:
        """Return the models in memory, and the one that is being loaded."""
        return [
            _resident(entry)
            for entry in self._entries.values()
            if entry.engine is not None or entry is self._under_way
        ]

    @asynccontextmanager
    async def lease(
        self, ref: ModelRef, files: LocalModel, keep_alive_s: float | None = None
    ) -> AsyncGenerator[Engine, None]:
        """Give the engine of a model, loading it first if need be; it stays while the lease lasts.

        `keep_alive_s` is how long the model stays once nobody uses it (negative: until its room
        is needed, which is also what holds until some lease says otherwise). A model whose files
        were replaced is loaded anew as soon as nobody uses the old one.

        Raises ModelLoadFailed, ModelTooLarge, NoRoom (all others are in use), ShuttingDown.
        """
        while (entry := self._entries.get(ref)) and entry.state is ModelState.UNLOADING:
            await entry.gone.wait()
        if entry is not None and entry.files != files:
            await self._unload_if_idle(entry)
        entry = self._usable_entry(ref, files)
        entry.leases += 1
        try:
            await entry.settled.wait()
            if entry.engine is None:
                raise entry.error or ShuttingDown("The model is being unloaded.")
            yield entry.engine
        finally:
            entry.leases -= 1
            entry.last_used = self._clock()
            if keep_alive_s is not None:
                entry.keep_alive_s = keep_alive_s
            if entry.leases == 0 and entry.keep_alive_s >= 0 and not self._closing:
                self._tasks.start_soon(self._expire, entry, entry.last_used)

    async def aclose(self) -> None:
        """Unload everything. Streams that still run get EngineFailed."""
        self._closing = True
        async with self._loading:
            for entry in list(self._entries.values()):
                if entry.state is ModelState.LOADED:
                    await self._unload(entry)

    def _usable_entry(self, ref: ModelRef, files: LocalModel) -> _Entry:
        """Return an entry that is loaded or being loaded. Awaits nothing, so nobody comes between
        this and the lease."""
        if self._closing:
            raise ShuttingDown("The gateway is shutting down.")
        entry = self._entries.get(ref)
        if entry is not None and entry.state is ModelState.LOADED:
            if entry.engine is not None and entry.engine.alive:
                return entry
            self._bury(entry)
        if entry is None or entry.state is not ModelState.LOADING:
            entry = self._begin_load(ref, files, entry.state if entry else ModelState.NOT_LOADED)
        return entry

    def _bury(self, entry: _Entry) -> None:
        """Give up an engine that died; its last readers hold what is left of it."""
        entry.engine = None
        entry.error = EngineFailed(f"The engine of {entry.ref} died.")
        self._set_state(entry, ModelState.UNLOADING)
        self._set_state(entry, ModelState.FAILED)

    def _begin_load(self, ref: ModelRef, files: LocalModel, state: ModelState) -> _Entry:
        entry = self._entries[ref] = _Entry(ref, files, state)
        self._set_state(entry, ModelState.LOADING)
        self._tasks.start_soon(self._run_load, entry, name=f"load {ref}")
        return entry

    async def _run_load(self, entry: _Entry) -> None:
        """Load in the manager's own task: nobody's leaving cancels a load that has begun."""
        try:
            async with self._loading:
                if entry.leases == 0:
                    del self._entries[entry.ref]
                    self._set_state(entry, ModelState.NOT_LOADED)
                    return
                self._under_way = entry
                await self._load_engine(entry)
                self._set_state(entry, ModelState.LOADED)
        except GatewayError as error:
            self._fail(entry, error)
        except Exception:
            logger.exception("loading %s failed", entry.ref)
            self._fail(entry, Internal(f"Loading {entry.ref} failed inside the gateway."))
        finally:
            self._under_way = None
            entry.last_used = self._clock()
            entry.settled.set()

    async def _load_engine(self, entry: _Entry) -> None:
        if self._closing:
            raise ShuttingDown("The gateway is shutting down.")
        started_at = self._clock()
        await self._make_room(entry, entry.files.size_bytes)
        engine = await self._open(entry.ref, entry.files)
        try:
            # Another dtype than the files' takes more (or less) than they promised.
            await self._make_room(entry, engine.memory_bytes)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await engine.aclose()
            raise
        entry.engine = engine
        logger.info("loaded %s in %.2f s", entry.ref, self._clock() - started_at)

    async def _make_room(self, entry: _Entry, need_bytes: int) -> None:
        """Unload idle models until `need_bytes` and a place are free; the load lock is held."""
        if need_bytes > self._budget_bytes:
            raise ModelTooLarge(
                f"{entry.ref} needs {need_bytes} bytes; the budget for models is "
                f"{self._budget_bytes} bytes."
            )
        # One at a time, then look again: what was idle may be leased while another unloads.
        while victims := self._choose_victims(entry, need_bytes):
            await self._unload(self._entries[victims[0]])

    def _choose_victims(self, entry: _Entry, need_bytes: int) -> list[ModelRef]:
        others = [resident for resident in self.residents() if resident.ref != entry.ref]
        used_bytes = sum(resident.memory_bytes for resident in others)
        try:
            return choose_victims(
                others,
                need_bytes=need_bytes,
                free_bytes=self._budget_bytes - used_bytes,
                need_slots=len(others) + 1 - self._max_models,
            )
        except NoRoom:
            names = ", ".join(str(resident.ref) for resident in others)
            raise NoRoom(f"There is no room for {entry.ref}; in use: {names}.") from None

    async def _unload(self, entry: _Entry) -> None:
        self._set_state(entry, ModelState.UNLOADING)
        engine, entry.engine = entry.engine, None
        assert engine is not None, "only a loaded model is unloaded"
        try:
            await engine.aclose()
            del engine
            if not self._closing:
                await anyio.to_thread.run_sync(gc.collect)
        finally:
            del self._entries[entry.ref]
            self._set_state(entry, ModelState.NOT_LOADED)
            entry.gone.set()

    async def _expire(self, entry: _Entry, last_used: float) -> None:
        """Unload the model after its keep-alive, unless somebody used it meanwhile."""
        await anyio.sleep(entry.keep_alive_s)
        if entry.last_used == last_used:
            await self._unload_if_idle(entry)

    async def _unload_if_idle(self, entry: _Entry) -> None:
        async with self._loading:
            if entry.state is ModelState.LOADED and entry.leases == 0:
                await self._unload(entry)

    def _fail(self, entry: _Entry, error: GatewayError) -> None:
        entry.error = error
        self._set_state(entry, ModelState.FAILED)

    def _set_state(self, entry: _Entry, state: ModelState) -> None:
        entry.state = require_transition(entry.state, state)
        message = entry.error.message if entry.error else None
        self._observe(ModelStateChange(entry.ref, state, entry.memory_bytes, message))


def _resident(entry: _Entry) -> Resident:
    return Resident(
        ref=entry.ref,
        memory_bytes=entry.memory_bytes,
        leases=entry.leases,
        last_used=entry.last_used,
        # What is coming or going is nobody's victim.
        pinned=entry.state is not ModelState.LOADED,
    )
