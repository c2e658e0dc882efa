"""The memory of devices, and what the models of all providers hold of it. Plain data, pure.

Who makes room for whom is decided here; `gateway.engine.memory.ledger` does it.
"""

from collections.abc import Sequence
from typing import Literal

import msgspec

from gateway.core.errors import ModelTooLarge, NoRoom
from gateway.core.eviction import EvictionPolicy, choose_victims, is_worth_waiting
from gateway.core.models import Resident
from gateway.core.names import ModelRef

UNBOUNDED = 2**62
"""The budget of a device whose size nobody here knows."""

EvictionReason = Literal["load", "neighbour", "cache", "overdrawn"]
"""What a model made room for: a model of the same provider, one of another, a model whose cache
grew, or nobody: the budget was exceeded."""


class Movement(msgspec.Struct, frozen=True):
    """A model that begins to be loaded, or, with a reason, to leave memory for another's load."""

    ref: ModelRef
    reason: EvictionReason | None = None


class Shortage(msgspec.Struct, frozen=True):
    """What a model needs of a device, and who else is there."""

    ref: ModelRef
    residents: Sequence[Resident]
    need_bytes: int
    free_bytes: int
    budget_bytes: int
    need_slots: int = 0
    policy: EvictionPolicy = "lru"

    def victims(self) -> list[ModelRef]:
        """Return who must go, in that order; raises NoRoom where the idle ones are not enough."""
        return choose_victims(
            self.residents,
            need_bytes=self.need_bytes,
            free_bytes=self.free_bytes,
            need_slots=self.need_slots,
            policy=self.policy,
        )

    @property
    def may_pass(self) -> bool:
        """Whether there will be room once nobody uses a model."""
        return is_worth_waiting(
            self.residents,
            need_bytes=self.need_bytes,
            free_bytes=self.free_bytes,
            need_slots=self.need_slots,
        )

    def require_possible(self) -> None:
        """Raise ModelTooLarge for what would not even fit into empty memory."""
        if self.need_bytes > self.budget_bytes:
            raise ModelTooLarge(
                f"{self.ref} needs {self.need_bytes} bytes; the budget for models is "
                f"{self.budget_bytes} bytes."
            )

    def no_room(self) -> NoRoom:
        """Return the error for a model that waited in vain."""
        if self.may_pass:
            there = ", ".join(str(each.ref) for each in self.residents)
            return NoRoom(f"There is no room for {self.ref}; in use: {there}.")
        pinned = ", ".join(str(each.ref) for each in self.residents if each.pinned)
        return NoRoom(
            f"There is no room for {self.ref} beside the pinned models: {pinned}.",
            hint="Unload or unpin one of them.",
        )


class DeviceAccount(msgspec.Struct, frozen=True):
    """One device now. `budget_bytes` None: nobody here knows how much there is. `overhead_bytes`
    are what the gateway's libraries took of it once, for all models.

    What models hold may for a moment be more than the budget: a server that loads by itself asks
    nobody.
    """

    device: str
    budget_bytes: int | None
    residents: Sequence[Resident]
    overhead_bytes: int = 0

    @property
    def used_bytes(self) -> int:
        return self.overhead_bytes + sum(each.memory_bytes for each in self.residents)

    @property
    def reserved_bytes(self) -> int:
        """The part of `used_bytes` that is set aside for models on their way into memory."""
        held = (each.memory_bytes for each in self.residents if _is_coming(each))
        return sum(held)

    @property
    def used_by_provider(self) -> dict[str, int]:
        """What the models of each provider hold, by its name."""
        used: dict[str, int] = {}
        for each in self.residents:
            used[each.ref.provider] = used.get(each.ref.provider, 0) + each.memory_bytes
        return used

    @property
    def free_bytes(self) -> int | None:
        if self.budget_bytes is None:
            return None
        return max(0, self.budget_bytes - self.used_bytes)


class EvictionCount(msgspec.Struct, frozen=True):
    """How many models of a provider were evicted since the start, and what for."""

    provider: str
    reason: EvictionReason
    count: int


class MemoryReport(msgspec.Struct, frozen=True):
    """The whole ledger now."""

    policy: EvictionPolicy
    devices: Sequence[DeviceAccount]
    evictions: Sequence[EvictionCount]
    elsewhere: Sequence[str] = ()
    """Providers whose models are not in this machine's memory, or not counted in it."""


def _is_coming(resident: Resident) -> bool:
    return resident.basis in ("reserved", "estimated")
