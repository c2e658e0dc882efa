"""Which of the engine's models have a place on which device.

A load waits here until the ledger has made room for it. Touched on the event loop only.
"""

from collections.abc import Callable, Iterator

import anyio
import anyio.to_thread
from msgspec.structs import replace

from gateway.core.errors import ModelTooLarge, NoRoom
from gateway.core.loading import LoadConfig, LoadPlan
from gateway.core.models import LocalModel, Resident
from gateway.core.names import ModelRef
from gateway.engine.memory.budget import MemoryBudget
from gateway.engine.memory.ledger import MemoryLedger, Want
from gateway.engine.residents.residence import Attempt, Model, Place, Residence


class Placement:
    """Gives models their places: at most `max_models` and the budget's bytes on each device.

    A Tenant of the ledger, in which models of other providers may be.
    """

    provider = "huggingface"

    def __init__(
        self,
        ledger: MemoryLedger,
        *,
        choose_device: Callable[[LoadConfig], str],
        evict: Callable[[Residence], None],
        overhead_bytes: Callable[[], int],
        max_models: int,
        wait_s: float,
    ) -> None:
        """`choose_device` may block; `evict` begins to unload a model that is idle;
        `overhead_bytes` returns what loads left of the processor's memory with the process so far;
        `wait_s` is how long a load waits for models in use."""
        self._ledger = ledger
        self._choose_device = choose_device
        self._evict = evict
        self._overhead_bytes = overhead_bytes
        self._max_models = max_models
        self._wait_s = wait_s
        self._places: list[Place] = []
        self._line: list[Attempt] = []
        self._arrival = anyio.Lock()
        ledger.join(self)

    def __iter__(self) -> Iterator[Place]:
        return iter(self._places)

    def residents(self, device: str) -> list[Resident]:
        """Return the models that have a place there."""
        return [place.describe() for place in self._places if place.device == device]

    async def look(self) -> None:
        """There is nothing to ask: all of it happens here."""

    async def see_off(self, device: str) -> bool:
        there = (place for place in self._places if place.device == device)
        going = next((place.residence for place in there if place.is_going), None)
        if going is not None:
            await going.gone.wait()
        return going is not None

    async def evict(self, ref: ModelRef) -> None:
        """Unload an idle model, and wait until it is gone."""
        residences = (place.residence for place in self._places if place.model.ref == ref)
        for residence in list(filter(None, residences)):
            self._evict(residence)
            await residence.gone.wait()

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
        await self._until(open_place, attempt, device, need_bytes)
        self._ledger.loads(model.ref)

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
        self._leave_overhead(place)
        need_bytes = memory_bytes + first_bytes
        more = need_bytes - place.share.held_bytes
        if more > 0:
            shortage = self._ledger.shortage(place.model.ref, place.device, need_bytes)
            shortage.require_possible()
            await self._until(lambda: place.share.reserve(more), attempt, place.device, more)
        place.share.release(place.share.held_bytes - memory_bytes)
        self._ledger.notify()

    def leave(self, place: Place) -> None:
        """Give the place back."""
        self._leave_overhead(place)
        place.share.close()
        self._places.remove(place)
        self._ledger.notify()

    async def relieve(self, place: Place, need_bytes: int) -> None:
        """Unload idle models, if that makes room for a cache that wants to grow."""
        try:
            await self._ledger.relieve(
                place.device,
                need_bytes,
                of=place.model.ref,
                is_wanted=lambda: not place.share.closed,
            )
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
            budget_bytes=budget.models_bytes,
            fits=True,
        )
        if own and not own.unloading and (own.files, own.config) == (files, config):
            return replace(plan, free_bytes=budget.free_bytes, already_loaded=True)
        slots = self._missing_slots(device, old)
        shortage = self._ledger.shortage(model.ref, device, need_bytes, slots)
        shortage = replace(shortage, free_bytes=free_bytes)
        try:
            shortage.require_possible()
            return replace(plan, evictions=tuple(shortage.victims()))
        except ModelTooLarge as error:
            return replace(plan, fits=False, reason=error.message)
        except NoRoom:
            return replace(plan, fits=False, reason=shortage.no_room().message)

    async def _survey(
        self, model: Model, files: LocalModel, config: LoadConfig
    ) -> tuple[str, MemoryBudget, int]:
        """Return the device, its budget, and the bytes that a load takes there; the ledger is up
        to date then."""

        def survey() -> tuple[str, MemoryBudget, int]:
            device = self._choose_device(config)
            return device, self._ledger.budget(device), model.need_bytes(files, config)

        await self._ledger.look()
        return await anyio.to_thread.run_sync(survey)

    async def _until(
        self, succeed: Callable[[], bool], attempt: Attempt, device: str, need_bytes: int
    ) -> None:
        """Evict until `succeed` does; where models in use are in the way, wait for them."""
        want = Want(
            ref=attempt.model.ref,
            device=device,
            need_bytes=need_bytes,
            take=succeed,
            need_slots=lambda: 0 if attempt.place else self._missing_slots(device, None),
            require_wanted=attempt.require_wanted,
            waits=self.tell_positions,
        )
        await self._ledger.fulfil(want, self._wait_s)

    def _leave_overhead(self, place: Place) -> None:
        """Count what the load left with the process: it was reserved for the model till now."""
        if place.device == "cpu":
            counted = self._ledger.budget(place.device).overhead_bytes
            place.share.leave_behind(max(0, self._overhead_bytes() - counted))

    def _missing_slots(self, device: str, own: Place | None) -> int:
        others = sum(place.device == device and place is not own for place in self._places)
        return max(0, others + 1 - self._max_models)
