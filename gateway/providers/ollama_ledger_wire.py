"""Ollama's models in the memory ledger: who uses them, and how they make room.

Ollama loads models as requests come and asks nobody. So room is taken in the ledger before a
request is sent, and what `/api/ps` tells is put there as soon as it is known.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import count

import anyio
from anyio.abc import TaskGroup
from msgspec.structs import replace

from gateway.core.errors import GatewayError, ModelTooLarge, NoRoom
from gateway.core.ledger import UNBOUNDED, Shortage
from gateway.core.loading import LoadPlan
from gateway.core.models import Resident
from gateway.core.names import ModelRef
from gateway.core.states import ModelState
from gateway.engine.memory.budget import Share
from gateway.engine.memory.ledger import MemoryLedger
from gateway.providers.ollama_fault_wire import PROVIDER
from gateway.providers.ollama_listing_wire import Running, name_key, read_ref
from gateway.providers.ollama_memory_wire import CPU, FindSize, OllamaDevices, Stay

logger = logging.getLogger(__name__)

ESTIMATE = 1.25
"""What a model is taken to hold that was never seen in memory, in sizes of its file: besides the
weights there are its cache and its buffers."""

EVICT_S = 10.0
"""How long an unload for somebody else's sake is waited for."""

RECENT_S = 10.0
"""How long a model counts as in use that others were seen using, or that would not go."""


class SharedMemory:
    """The memory of an Ollama server on this machine: a Tenant of the ledger, an OllamaMemory."""

    provider = PROVIDER

    def __init__(
        self,
        ledger: MemoryLedger,
        tasks: TaskGroup,
        *,
        devices: OllamaDevices,
        wait_s: float,
        clock: Callable[[], float],
        now: Callable[[], float],
        evict_s: float = EVICT_S,
    ) -> None:
        """`wait_s` is how long a request waits for models in use to make room, `evict_s` how long
        an unload for another's sake is waited for; `clock` is the ledger's, `now` Unix seconds."""
        self._ledger = ledger
        self._tasks = tasks
        self._devices = devices
        self._wait_s = wait_s
        self._clock = clock
        self._now = now
        self._evict_s = evict_s
        self._ask: Callable[[], Awaitable[object]]
        self._unload: Callable[[ModelRef], Awaitable[None]]
        self._stays: dict[str, Stay] = {}
        self._seen: dict[str, dict[str, int]] = {}
        self._load_s: dict[str, float] = {}
        self._left: dict[str, int] = {}
        self._marks = count(1)

    def serve(
        self,
        ask: Callable[[], Awaitable[object]],
        unload: Callable[[ModelRef], Awaitable[None]],
    ) -> None:
        self._ask, self._unload = ask, unload
        self._ledger.join(self)

    def residents(self, device: str) -> list[Resident]:
        return [
            self._describe(stay, stay.shares[device].held_bytes)
            for stay in self._stays.values()
            if device in stay.shares
        ]

    def _describe(self, stay: Stay, memory_bytes: int) -> Resident:
        is_busy = stay.is_going or self._clock() < stay.busy_until
        return Resident(
            ref=stay.ref,
            memory_bytes=memory_bytes,
            leases=stay.leases or int(is_busy),
            last_used=stay.last_used,
            basis=stay.basis,
            slots=0,
            load_s=self._load_s.get(name_key(stay.ref)),
        )

    async def look(self) -> None:
        try:
            await self._ask()
        except GatewayError as error:
            logger.info("what Ollama has in memory is not known: %s", error.message)

    async def see_off(self, device: str) -> bool:
        going = (each for each in self._stays.values() if each.is_going and device in each.shares)
        stay = next(going, None)
        if stay is not None:
            await stay.settled.wait()
        return stay is not None

    async def evict(self, ref: ModelRef) -> None:
        stay = self._stays.get(name_key(ref))
        if stay is None or stay.leases:
            return
        stay.is_going = True
        try:
            with anyio.move_on_after(self._evict_s):
                await self._unload(stay.ref)
        except GatewayError as error:
            logger.warning("%s makes no room: %s", ref, error.message)
        finally:
            stay.is_going = False
            # Where it is still there somebody uses it, and Ollama lets him.
            stay.busy_until = self._clock() + RECENT_S
            stay.settled.set()
            stay.settled = anyio.Event()

    async def enter(self, ref: ModelRef, find_size: FindSize) -> Stay:
        key, deadline = name_key(ref), self._clock() + self._wait_s
        while (there := self._stays.get(key)) is not None and there.is_going:
            await there.settled.wait()
        stay = there or self._stays.setdefault(key, Stay(ref, self._clock()))
        self._lease(stay)
        if not stay.shares:
            try:
                # Those who come together take the room once.
                async with stay.arrival:
                    if not stay.shares:
                        await self._reserve(key, stay, await find_size(stay.ref), deadline)
            except BaseException:
                self.leave(stay)
                raise
        return stay

    def enter_now(self, ref: ModelRef) -> Stay | None:
        stay = self._stays.get(name_key(ref))
        if stay is None or stay.is_going or not stay.shares:
            return None
        self._lease(stay)
        return stay

    def _lease(self, stay: Stay) -> None:
        stay.leases += 1
        self._touch(stay)
        self._ledger.asked(stay.ref)

    def state_of(self, ref: ModelRef) -> ModelState | None:
        stay = self._stays.get(name_key(ref))
        if stay is None:
            return ModelState.NOT_LOADED
        if stay.is_going:
            return ModelState.UNLOADING
        return ModelState.LOADED if stay.basis == "told" else ModelState.LOADING

    def answered(self, stay: Stay) -> None:
        if stay.basis == "estimated":
            if stay.began_at is not None:
                self._load_s[name_key(stay.ref)] = self._clock() - stay.began_at
                stay.began_at = None
            self._tasks.start_soon(self.look, name="look at Ollama's memory")

    def leave(self, stay: Stay) -> None:
        stay.leases -= 1
        self._touch(stay)
        if not stay.leases:
            if not stay.shares:
                self._stays.pop(name_key(stay.ref), None)
            elif stay.basis == "estimated":
                # It failed, or nobody has looked yet.
                self._tasks.start_soon(self.look, name="look at Ollama's memory")
        self._ledger.notify()

    def _touch(self, stay: Stay) -> None:
        stay.last_used = self._clock()
        stay.was_asked = True
        stay.changed_at = next(self._marks)

    async def _reserve(self, key: str, stay: Stay, size_bytes: int | None, deadline: float) -> None:
        taken: dict[str, Share] = {}
        try:
            await self._ledger.look()
            for device, need_bytes in (await self._split(key, size_bytes)).items():
                if stay.shares:
                    break  # the look found it there
                wait_s = max(0.0, deadline - self._clock())
                taken[device] = await self._ledger.take(stay.ref, device, need_bytes, wait_s=wait_s)
        except BaseException as error:
            for share in taken.values():
                share.close()
            if isinstance(error, ModelTooLarge):
                raise ModelTooLarge(error.message, hint=_TOO_LARGE_HINT) from error
            raise
        if stay.shares:
            for share in taken.values():
                share.close()
            return
        stay.shares, stay.basis, stay.began_at = taken, "estimated", self._clock()
        if taken:
            self._ledger.loads(stay.ref)

    async def _split(self, key: str, size_bytes: int | None) -> Mapping[str, int]:
        """Return what a model will hold on each device: as it was seen last, else by its size."""
        if key in self._seen:
            return self._seen[key]
        if size_bytes is None:
            return {}
        budget = await self._ledger.find_budget(self._devices.usual)
        # The estimate turns nobody away whose weights would fit.
        most = max(size_bytes, budget.models_bytes)
        return {self._devices.usual: min(round(size_bytes * ESTIMATE), most)}

    async def plan(self, ref: ModelRef, size_bytes: int | None) -> LoadPlan:
        await self._ledger.look()
        split = await self._split(name_key(ref), size_bytes)
        if not split:
            return LoadPlan(ref, reason="Nobody knows how large it is before it is loaded.")
        shortages = [
            self._ledger.shortage(ref, device, need_bytes) for device, need_bytes in split.items()
        ]
        main = max(shortages, key=lambda each: each.need_bytes)
        is_bounded = main.budget_bytes < UNBOUNDED
        plan = LoadPlan(
            ref,
            need_bytes=main.need_bytes,
            free_bytes=max(0, main.free_bytes) if is_bounded else None,
            budget_bytes=main.budget_bytes if is_bounded else None,
            fits=True,
        )
        try:
            victims = [victim for each in shortages for victim in _victims(each)]
        except (ModelTooLarge, NoRoom) as error:
            return replace(plan, fits=False, reason=error.message)
        return replace(plan, evictions=tuple(dict.fromkeys(victims)))

    def mark(self) -> int:
        return next(self._marks)

    async def note(self, running: Sequence[Running], since: int) -> None:
        told = {
            name_key(ref): (ref, model)
            for model in running
            if (ref := read_ref(model.model or model.name)) is not None
        }
        splits = {key: self._read_split(model) for key, (_, model) in told.items()}
        for device in {device for split in splits.values() for device in split}:
            await self._ledger.find_budget(device)
        for key, (ref, model) in told.items():
            if key in self._stays or self._left.get(key, 0) < since:
                stay = self._stays.setdefault(key, Stay(ref, self._clock()))
                self._seen[key] = splits[key]
                self._claim(stay, splits[key])
                self._note_use(stay, model, since)
        for key, stay in list(self._stays.items()):
            if key not in told and not stay.leases and stay.changed_at < since:
                self._drop(key)
        self._relieve()
        self._ledger.notify()

    def forget(self, since: int) -> None:
        for key, stay in list(self._stays.items()):
            if not stay.leases and stay.changed_at < since:
                self._drop(key)
        self._ledger.notify()

    def close(self) -> None:
        for key in list(self._stays):
            self._drop(key)

    def _read_split(self, model: Running) -> dict[str, int]:
        size, on_gpu = int(model.size or 0), int(model.size_vram or 0)
        on_gpu = min(size, on_gpu)
        split = {self._devices.gpu: on_gpu, CPU: size - on_gpu}
        return {device: held for device, held in split.items() if held} or {CPU: 0}

    def _claim(self, stay: Stay, split: Mapping[str, int]) -> None:
        for device in [device for device in stay.shares if device not in split]:
            stay.shares.pop(device).close()
        for device, size_bytes in split.items():
            if device in stay.shares:
                stay.shares[device].claim(size_bytes)
            else:
                stay.shares[device] = self._ledger.budget(device).claim(stay.ref, size_bytes)
        stay.basis = "told"

    def _note_use(self, stay: Stay, model: Running, since: int) -> None:
        expires = model.expires_at
        expires_at = expires.timestamp() if expires and expires.year > 1 else None
        is_first, moved = stay.expires_at is None, stay.expires_at != expires_at
        stay.expires_at = expires_at
        is_over = expires_at is not None and expires_at < self._now()
        if is_over or (moved and not is_first and not stay.was_asked):
            # Others use it: with a request that runs the time stands still, and then begins anew.
            stay.last_used = self._clock()
            stay.busy_until = self._clock() + RECENT_S
        if not stay.leases and stay.changed_at < since:
            stay.was_asked = False

    def _drop(self, key: str) -> None:
        stay = self._stays.pop(key)
        self._left[key] = next(self._marks)
        stay.close()

    def _relieve(self) -> None:
        """See to it that idle models go where Ollama took more than there was."""
        held = {device for stay in self._stays.values() for device in stay.shares}
        for device in held:
            if self._ledger.budget(device).free_bytes < 0:
                self._tasks.start_soon(self._ledger.relieve, device, 0, name=f"relieve {device}")


_TOO_LARGE_HINT = (
    "Give models more with GATEWAY_MEMORY_BUDGET_BYTES; GATEWAY_OLLAMA_SHARES_MEMORY=no leaves "
    "Ollama's memory to Ollama."
)


def _victims(shortage: Shortage) -> list[ModelRef]:
    shortage.require_possible()
    return shortage.victims()
