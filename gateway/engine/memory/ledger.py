"""One ledger for the memory of all devices: who holds what, and who goes for whom.

What models hold is counted in the devices' budgets; each provider whose models can go is a
`Tenant`. Touched on the event loop only, but for the budgets.
"""

import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Protocol

import anyio
import anyio.to_thread
import msgspec
from msgspec.structs import replace

from gateway.core.errors import NoRoom
from gateway.core.eviction import Demand, EvictionPolicy
from gateway.core.ledger import (
    UNBOUNDED,
    DeviceAccount,
    EvictionCount,
    EvictionReason,
    MemoryReport,
    Movement,
    Shortage,
)
from gateway.core.models import Resident
from gateway.core.names import ModelRef
from gateway.engine.memory.budget import DeviceBudgets, MemoryBudget, Share

logger = logging.getLogger(__name__)


class Tenant(Protocol):
    """A provider whose models hold memory that others want, too."""

    @property
    def provider(self) -> str: ...

    def residents(self, device: str) -> Sequence[Resident]:
        """Return its models on a device: what they hold there is in the device's budget."""
        ...

    async def look(self) -> None:
        """Bring what is known of the models up to date, in bounded time; never raises."""
        ...

    async def see_off(self, device: str) -> bool:
        """Wait until a model that is on its way out is gone; False: there is none."""
        ...

    async def evict(self, ref: ModelRef) -> None:
        """Unload an idle model; returns when it is gone, or counts as in use from now on."""
        ...


class Want(msgspec.Struct, frozen=True):
    """Room that somebody wants on a device, and what is called meanwhile, on the event loop.

    `take` takes the room if it is there now. `require_wanted` raises when nobody wants it any
    more; `waits` is called whenever models in use are waited for.
    """

    ref: ModelRef
    device: str
    need_bytes: int
    take: Callable[[], bool]
    need_slots: Callable[[], int] = lambda: 0
    require_wanted: Callable[[], None] = lambda: None
    waits: Callable[[], None] = lambda: None


class MemoryLedger:
    """Makes room on the devices, over all providers."""

    def __init__(
        self,
        budgets: DeviceBudgets,
        *,
        policy: EvictionPolicy = "lru",
        moved: Callable[[Movement], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        """`moved` is told of each load, and of who goes for it, in the context of whoever caused
        that, and must not block. `sleep` must go by `clock`."""
        self._budgets = budgets
        self._moved = moved
        self.policy: EvictionPolicy = policy
        self._clock = clock
        self._sleep = sleep
        self._demand = Demand()
        self._tenants: dict[str, Tenant] = {}
        self._evictions: Counter[tuple[str, EvictionReason]] = Counter()
        self._turn = anyio.Lock()
        self._changed: anyio.Event | None = None  # only while somebody waits

    def join(self, tenant: Tenant) -> None:
        """Let a provider's models be seen, and evicted."""
        self._tenants[tenant.provider] = tenant

    @property
    def tenants(self) -> Collection[str]:
        """The providers whose models are in the ledger."""
        return self._tenants.keys()

    def notify(self) -> None:
        """Let who waits for room look again."""
        changed, self._changed = self._changed, None
        if changed is not None:
            changed.set()

    def asked(self, ref: ModelRef) -> None:
        """Take note of a request to a model: how often they come is what the policy may know."""
        self._demand.note(ref)

    def loads(self, ref: ModelRef) -> None:
        """Take note that a model has the room that it wanted, and is loaded now."""
        self._moved(Movement(ref))

    def budget(self, device: str) -> MemoryBudget:
        """Return a device's budget. Blocking when the device is first asked for."""
        return self._budgets.of(device)

    async def find_budget(self, device: str) -> MemoryBudget:
        """Return a device's budget."""
        known = self._budgets.known(device)
        if known is not None:
            return known
        return await anyio.to_thread.run_sync(self._budgets.of, device)

    async def look(self) -> None:
        """Bring what is known of the providers' models up to date."""
        async with anyio.create_task_group() as tasks:
            for tenant in self._tenants.values():
                tasks.start_soon(tenant.look)

    def residents(self, device: str, *, but: ModelRef | None = None) -> list[Resident]:
        """Return the models on a device, of all providers."""
        return [
            replace(resident, heat=self._demand.heat(resident.ref))
            for tenant in self._tenants.values()
            for resident in tenant.residents(device)
            if resident.ref != but
        ]

    def shortage(
        self, ref: ModelRef, device: str, need_bytes: int, need_slots: int = 0
    ) -> Shortage:
        """Return what a model that needs so much would find there now."""
        budget = self.budget(device)
        return Shortage(
            ref=ref,
            residents=self.residents(device, but=ref),
            need_bytes=need_bytes,
            free_bytes=budget.free_bytes,
            budget_bytes=budget.models_bytes,
            need_slots=need_slots,
            policy=self.policy,
        )

    async def fulfil(self, want: Want, wait_s: float) -> None:
        """Evict until `want.take` succeeds; where models in use are in the way, wait for them for
        `wait_s`. Raises ModelTooLarge, NoRoom, and what `want.require_wanted` does."""
        self._shortage_of(want).require_possible()
        deadline = self._clock() + wait_s
        while True:
            changed = self._changed = self._changed or anyio.Event()
            # One at a time: nobody takes what another's eviction made free.
            async with self._turn:
                while True:
                    want.require_wanted()
                    if want.take():
                        return
                    shortage = self._shortage_of(want)
                    if not await self._evict_one(shortage, want.device):
                        break
            if not shortage.may_pass or not await self._wait(changed, deadline, want):
                raise shortage.no_room()

    async def take(self, ref: ModelRef, device: str, size_bytes: int, *, wait_s: float) -> Share:
        """Return a share of so many bytes, for which idle models may go. Raises as `fulfil`."""
        budget = await self.find_budget(device)
        taken: list[Share] = []

        def take() -> bool:
            share = budget.open(ref, size_bytes)
            taken.extend([share] if share else [])
            return share is not None

        await self.fulfil(Want(ref, device, size_bytes, take), wait_s)
        return taken[0]

    async def relieve(
        self,
        device: str,
        need_bytes: int,
        *,
        of: ModelRef | None = None,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        """Evict idle models until so much is free, as far as that goes: for the cache of a model
        that wants to grow, or, without one, where the budget is exceeded."""
        budget = await self.find_budget(device)
        reason: EvictionReason = "overdrawn" if of is None else "cache"
        async with self._turn:
            while is_wanted() and budget.free_bytes < need_bytes:
                shortage = self.shortage(of or _NOBODY, device, need_bytes)
                if not await self._evict_one(shortage, device, reason):
                    return

    def report(self, elsewhere: Sequence[str] = ()) -> MemoryReport:
        """Return the whole ledger."""
        counts = sorted(self._evictions.items())
        return MemoryReport(
            policy=self.policy,
            devices=[self._account(device) for device in self._budgets.devices()],
            evictions=[EvictionCount(*key, count) for key, count in counts],
            elsewhere=elsewhere,
        )

    def _account(self, device: str) -> DeviceAccount:
        budget = self.budget(device)
        return DeviceAccount(
            device=device,
            budget_bytes=None if budget.total_bytes >= UNBOUNDED else budget.total_bytes,
            residents=sorted(self.residents(device), key=lambda each: str(each.ref)),
            overhead_bytes=budget.overhead_bytes,
        )

    def _shortage_of(self, want: Want) -> Shortage:
        return self.shortage(want.ref, want.device, want.need_bytes, want.need_slots())

    async def _evict_one(
        self, shortage: Shortage, device: str, reason: EvictionReason | None = None
    ) -> bool:
        """Wait until one model is gone: one that goes already, or the next victim. False: there is
        none. One at a time, then look again: what was idle may be leased while another unloads."""
        for tenant in self._tenants.values():
            if await tenant.see_off(device):
                return True
        try:
            victims = shortage.victims()
        except NoRoom:
            return False
        if not victims:
            return False
        victim = victims[0]
        if reason is None:
            reason = "load" if victim.provider == shortage.ref.provider else "neighbour"
            self._moved(Movement(victim, reason))
        self._evictions[victim.provider, reason] += 1
        logger.info("%s is evicted (%s)", victim, reason)
        await self._tenants[victim.provider].evict(victim)
        return True

    async def _wait(self, changed: anyio.Event, deadline: float, want: Want) -> bool:
        """Wait until something changed; False at the deadline."""
        left = deadline - self._clock()
        if left <= 0:
            return False
        want.waits()
        async with anyio.create_task_group() as tasks:

            async def ring() -> None:
                await self._sleep(left)
                tasks.cancel_scope.cancel()

            tasks.start_soon(ring)
            await changed.wait()
            tasks.cancel_scope.cancel()
        return changed.is_set()


_NOBODY = ModelRef("", "")
"""Who wants room that was taken by nobody who asked."""
