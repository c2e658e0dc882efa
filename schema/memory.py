"""The memory ledger as GraphQL shows it."""

from enum import Enum

import strawberry

from gateway.core import ledger, models
from schema.context import Info
from schema.types import Long


@strawberry.enum(description="How the bytes of a model in memory are known.")
class MemoryBasis(Enum):
    MEASURED = strawberry.enum_value("MEASURED", description="Counted by the gateway.")
    TOLD = strawberry.enum_value("TOLD", description="Told by the server that it is in.")
    RESERVED = strawberry.enum_value(
        "RESERVED", description="Set aside for a load, by what its files say."
    )
    ESTIMATED = strawberry.enum_value(
        "ESTIMATED", description="Set aside for a load, by no more than its size."
    )


@strawberry.type(description="What one model holds of a device.")
class MemoryHolding:
    id: strawberry.ID = strawberry.field(description="The model's full name.")
    provider: str = strawberry.field(description="Whose model it is.")
    memory_bytes: Long = strawberry.field(description="What it holds there.")
    basis: MemoryBasis = strawberry.field(description="How that is known.")
    in_use: bool = strawberry.field(description="Requests use it, or it is coming or going.")
    pinned: bool = strawberry.field(description="It makes room for nobody.")

    @classmethod
    def of(cls, resident: models.Resident) -> "MemoryHolding":
        return cls(
            id=strawberry.ID(str(resident.ref)),
            provider=resident.ref.provider,
            memory_bytes=Long(resident.memory_bytes),
            basis=MemoryBasis[resident.basis.upper()],
            in_use=resident.leases > 0,
            pinned=resident.pinned,
        )


@strawberry.type(description="The memory that models may take on one device.")
class DeviceMemory:
    device: str = strawberry.field(description="cpu, mps, cuda:0 or another GPU.")
    budget_bytes: Long | None = strawberry.field(
        description="For the models of all providers; null: nobody here knows."
    )
    used_bytes: Long = strawberry.field(
        description="What models hold, with reservations and overhead."
    )
    reserved_bytes: Long = strawberry.field(description="What is set aside for loads.")
    overhead_bytes: Long = strawberry.field(
        description="What the gateway's libraries took once, for all models."
    )
    free_bytes: Long | None = strawberry.field(description="What is left of the budget.")
    models: list[MemoryHolding] = strawberry.field(description="Who holds it, by name.")

    @classmethod
    def of(cls, account: ledger.DeviceAccount) -> "DeviceMemory":
        return cls(
            device=account.device,
            budget_bytes=_long(account.budget_bytes),
            used_bytes=Long(account.used_bytes),
            reserved_bytes=Long(account.reserved_bytes),
            overhead_bytes=Long(account.overhead_bytes),
            free_bytes=_long(account.free_bytes),
            models=[MemoryHolding.of(resident) for resident in account.residents],
        )


@strawberry.type(
    description="How many models of a provider were evicted since the start, and what for."
)
class EvictionCount:
    provider: str = strawberry.field(description="Whose models went.")
    reason: str = strawberry.field(
        description="load, neighbour (a load of another provider), cache or overdrawn."
    )
    count: int = strawberry.field(description="How many.")


@strawberry.type(description="The memory ledger over all providers.")
class Memory:
    eviction_policy: str = strawberry.field(description="Who makes room: lru or lrfu.")
    devices: list[DeviceMemory] = strawberry.field(description="By name.")
    elsewhere: list[str] = strawberry.field(
        description="Providers whose models take none of this memory."
    )
    evictions: list[EvictionCount] = strawberry.field(description="Who made room, and what for.")

    @classmethod
    def of(cls, report: ledger.MemoryReport) -> "Memory":
        return cls(
            eviction_policy=report.policy,
            devices=[DeviceMemory.of(account) for account in report.devices],
            elsewhere=list(report.elsewhere),
            evictions=[
                EvictionCount(provider=each.provider, reason=each.reason, count=each.count)
                for each in report.evictions
            ],
        )


async def tell_memory(info: Info) -> Memory | None:
    return Memory.of(await info.context.gateway.memory.report())


def _long(value: int | None) -> Long | None:
    return None if value is None else Long(value)
