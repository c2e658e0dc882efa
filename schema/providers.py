"""`providers`: what the database knows of each of them."""

from datetime import datetime

import strawberry

from gateway.core.models import ProviderStatus
from schema.types import Capability, ProviderState, to_datetime


@strawberry.type(description="What the last look at a provider found, as the database keeps it.")
class Provider:
    name: str = strawberry.field(description="Its name, the first part of its models' ids.")
    kind: str = strawberry.field(description="Which kind of provider it is.")
    state: ProviderState = strawberry.field(description="Whether it answered.")
    checked_at: datetime = strawberry.field(description="When it was last asked.")
    last_seen_at: datetime | None = strawberry.field(description="When it last answered.")
    error_code: str | None = strawberry.field(description="What is wrong, for programs.")
    error_message: str | None = strawberry.field(description="What is wrong, for people.")
    capabilities: list[Capability] = strawberry.field(
        description="What its models can be asked for, taken together."
    )

    @classmethod
    def of(cls, status: ProviderStatus) -> "Provider":
        seen_at = status.last_seen_at
        return cls(
            name=status.name,
            kind=status.kind,
            state=ProviderState[status.state.name],
            checked_at=to_datetime(status.checked_at),
            last_seen_at=None if seen_at is None else to_datetime(seen_at),
            error_code=status.error_code,
            error_message=status.error_message,
            capabilities=[Capability[capability.name] for capability in status.capabilities],
        )
