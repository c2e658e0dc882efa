"""Which models have a place on which device, and who makes room for whom.

A load waits here until idle models have gone, or until those in use are idle. Touched on the event
loop only; what it counts in, the budgets, are shared with the engines' threads.
"""

from collections.abc import Awaitable, Callable, Iterator

import anyio
import anyio.to_thread
import msgspec
from msgspec.structs import replace

from gateway.core.errors import ModelTooLarge, NoRoom
from gateway.core.eviction import choose_victims, is_worth_waiting
from gateway.core.loading import LoadConfig, LoadPlan
from gateway.core.models import LocalModel, Resident
from gateway.core.names import ModelRef
from gateway.engine.budget import DeviceBudgets, MemoryBudget
from gateway.engine.residence import Attempt, Model, Place, Residence


class _Shortage(msgspec.Struct, frozen=True):
    """What is missing on a device, and who is there."""

    residents: list[Resident]
    need_bytes: int
    free_bytes: int
    need_slots: int

    def victims(self) -> list[ModelRef]:
        """Return who must go; raises NoRoom where the idle ones are not enough."""
        return choose_victims(
            self.residents,
            need_bytes=self.need_bytes,
            free_bytes=self.free_bytes,
            need_slots=self.need_slots,
        )

    @property
    def may_pass(self) -> bool:
        return is_worth_waiting(
            self.residents,
            need_bytes=self.need_bytes,
            free_bytes=self.free_bytes,
            need_slots=self.need_slots,
        )


class Placement:
    """Gives models their places: at most `max_models` and the budget's bytes on each device."""

    def __init__(
        self,
        budgets: DeviceBudgets,
        *,
        choose_device: Callable[[LoadConfig], str],
        evict: Callable[[Residence], None],
        max_models: int,
        wait_s: float,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        """`choose_device` may block; `evict` begins to unload a model that is idle; `wait_s` is how
        long a load waits for models in use."""
        self._budgets = budgets
        self._choose_device = choose_device
        self._evict = evict
        self._max_models = max_models
        self._wait_s = wait_s
        self._clock = clock
        self._sleep = sleep
        self._places: list[Place] = []
        self._line: list[Attempt] = []
        self._arrival = anyio.Lock()
        self._turn = anyio.Lock()
        self._changed = anyio.Event()

    def __iter__(self) -> Iterator[Place]:
        return iter(self._places)

    def notify(self) -> None:
        """Let who waits for room look again."""
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    async def take(self, attempt: Attempt) -> None:
        """Set `attempt.place`; evicts, and waits for `wait_s` where that is not enough.

        Raises ModelTooLarge, NoRoom, and what `attempt.require_wanted` does.
        """
        # In the order of their coming, whichever thread is back first.
        model = attempt.model
        async with self._arrival:
            device, budget, need_bytes = await self._survey(model, attempt.files, attempt.config)

        def open_place() -> bool:
            if sum(place.device == device for place in self._places) >= self._max_models:
                return False
            share = budget.open(model.ref, need_bytes)
            if share is not None:
                attempt.place = Place(model, device, share)
                self._places.append(attempt.place)
            return share is not None

        self._line.append(attempt)
        await self._until(open_place, attempt, device, budget, need_bytes)

    def tell_positions(self) -> None:
        """Tell those in the line where they stand: they have to wait."""
        for position, attempt in enumerate(self._line, 1):
            if attempt.position != position:
                attempt.position = position
                attempt.model.notify()

    def leave_line(self, attempt: Attempt) -> None:
        """Let the attempt begin, or end: it waits for nothing any more."""
        if attempt in self._line:
            was_told = attempt.position is not None
            self._line.remove(attempt)
            attempt.position = None
            if was_told:
                self.tell_positions()

    async def settle(self, attempt: Attempt, memory_bytes: int, first_bytes: int) -> None:
        """Make the place as large as the model was measured to be, once there is room for a first
        sequence besides: without it every request would be refused. Raises ModelTooLarge, NoRoom.
        """
        place = attempt.place
        assert place is not None, "only what has a place is loaded"
        need_bytes = memory_bytes + first_bytes
        more = need_bytes - place.share.held_bytes
        if more > 0:
            budget = self._budgets.of(place.device)
            _require_possible(place.model, need_bytes, budget)
            await self._until(
                lambda: place.share.reserve(more), attempt, place.device, budget, more
            )
        place.share.release(place.share.held_bytes - memory_bytes)
        self.notify()

    def leave(self, place: Place) -> None:
        """Give the place back."""
        place.share.close()
        self._places.remove(place)
        self.notify()

    async def relieve(self, place: Place, need_bytes: int) -> None:
        """Unload idle models, if that makes room for a cache that wants to grow."""
        budget = self._budgets.of(place.device)
        try:
            async with self._turn:
                while not place.share.closed and budget.free_bytes < need_bytes:
                    shortage = self._shortage(place.device, budget, need_bytes, 0, place)
                    if not await self._evict_one(shortage, place.device):
                        return
        finally:
            place.is_being_relieved = False

    async def plan(self, model: Model, files: LocalModel, config: LoadConfig) -> LoadPlan:
        """Return what `take` would do now."""
        device, budget, need_bytes = await self._survey(model, files, config)
        own = model.residence
        # Its own old self goes before the new one comes, and is nobody's victim.
        old = own.place if own and own.place.device == device else None
        free_bytes = budget.free_bytes + (old.share.held_bytes if old else 0)
        plan = LoadPlan(
            model.ref,
            need_bytes=need_bytes,
            free_bytes=free_bytes,
            budget_bytes=budget.total_bytes,
            fits=True,
        )
        if own and not own.unloading and (own.files, own.config) == (files, config):
            return replace(plan, free_bytes=budget.free_bytes, already_loaded=True)
        shortage = replace(
            self._shortage(device, budget, need_bytes, 1, old), free_bytes=free_bytes
        )
        try:
            _require_possible(model, need_bytes, budget)
            return replace(plan, evictions=tuple(shortage.victims()))
        except ModelTooLarge as error:
            return replace(plan, fits=False, reason=error.message)
        except NoRoom:
            return replace(plan, fits=False, reason=_no_room(model, shortage).message)

    async def _survey(
        self, model: Model, files: LocalModel, config: LoadConfig
    ) -> tuple[str, MemoryBudget, int]:
        """Return the device, its budget, and the bytes that a load takes there."""

        def survey() -> tuple[str, MemoryBudget, int]:
            device = self._choose_device(config)
            return device, self._budgets.of(device), model.need_bytes(files, config)

        return await anyio.to_thread.run_sync(survey)

    async def _until(
        self,
        succeed: Callable[[], bool],
        attempt: Attempt,
        device: str,
        budget: MemoryBudget,
        need_bytes: int,
    ) -> None:
        """Evict until `succeed` does; where models in use are in the way, wait for them."""
        _require_possible(attempt.model, need_bytes, budget)
        slots = 0 if attempt.place else 1
        deadline = self._clock() + self._wait_s
        while True:
            changed = self._changed
            # One at a time: nobody takes what another's eviction made free.
            async with self._turn:
                while True:
                    attempt.require_wanted()
                    if succeed():
                        return
                    shortage = self._shortage(device, budget, need_bytes, slots, attempt.place)
                    if not await self._evict_one(shortage, device):
                        break
            if not shortage.may_pass or not await self._wait(changed, deadline):
                raise _no_room(attempt.model, shortage)

    async def _evict_one(self, shortage: _Shortage, device: str) -> bool:
        """Wait until one model is gone: one that goes already, or the next victim. False: there is
        none. One at a time, then look again: what was idle may be leased while another unloads."""
        there = [place for place in self._places if place.device == device]
        going = next((place.residence for place in there if place.is_going), None)
        if going is None:
            going = self._next_victim(shortage, there)
            if going is None:
                return False
            self._evict(going)
        await going.gone.wait()
        return True

    def _next_victim(self, shortage: _Shortage, there: list[Place]) -> Residence | None:
        try:
            victims = shortage.victims()
        except NoRoom:
            return None
        residences = (place.residence for place in there)
        return next(
            (
                each
                for each in residences
                if each and not each.unloading and each.place.model.ref in victims[:1]
            ),
            None,
        )

    def _shortage(
        self, device: str, budget: MemoryBudget, need_bytes: int, slots: int, own: Place | None
    ) -> _Shortage:
        others = [place for place in self._places if place.device == device and place is not own]
        return _Shortage(
            residents=[place.describe() for place in others],
            need_bytes=need_bytes,
            free_bytes=budget.free_bytes,
            need_slots=max(0, len(others) + 1 - self._max_models) if slots else 0,
        )

    async def _wait(self, changed: anyio.Event, deadline: float) -> bool:
        """Wait until something changed; False at the deadline."""
        left = deadline - self._clock()
        if left <= 0:
            return False
        self.tell_positions()
        async with anyio.create_task_group() as tasks:

            async def ring() -> None:
                await self._sleep(left)
                tasks.cancel_scope.cancel()

            tasks.start_soon(ring)
            await changed.wait()
            tasks.cancel_scope.cancel()
        return changed.is_set()


def _require_possible(model: Model, need_bytes: int, budget: MemoryBudget) -> None:
    if need_bytes > budget.total_bytes:
        raise ModelTooLarge(
            f"{model.ref} needs {need_bytes} bytes; the budget for models is "
            f"{budget.total_bytes} bytes."
        )


def _no_room(model: Model, shortage: _Shortage) -> NoRoom:
    if shortage.may_pass:
        there = ", ".join(str(each.ref) for each in shortage.residents)
        return NoRoom(f"There is no room for {model.ref}; in use: {there}.")
    pinned = ", ".join(str(each.ref) for each in shortage.residents if each.pinned)
    return NoRoom(
        f"There is no room for {model.ref} beside the pinned models: {pinned}.",
        hint="Unload or unpin one of them.",
    )
