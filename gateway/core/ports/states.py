"""Last known states of models and providers."""

from collections.abc import Sequence
from typing import Protocol

from gateway.core.drift import StateDrift
from gateway.core.models import ModelStateChange, ProviderStatus


class ModelStateStore(Protocol):
    """Last known state of each model, keyed by (node, provider, model)."""

    async def apply(self, node: str, changes: Sequence[ModelStateChange], at: float) -> None:
        """Write the changes in order, in one transaction."""
        ...

    async def reconcile(
        self, node: str, provider: str, truth: Sequence[ModelStateChange], at: float
    ) -> Sequence[StateDrift]:
        """Make the records of one provider equal to the truth, and return where they were not;
        models that are not in it are removed."""
        ...

    async def all(self, node: str) -> Sequence[ModelStateChange]: ...


class ProviderStore(Protocol):
    """Last known status of each provider, keyed by (node, name)."""

    async def put(self, node: str, statuses: Sequence[ProviderStatus]) -> None:
        """Insert or replace; `last_seen_at` None keeps the time that is already there."""
        ...

    async def all(self, node: str) -> Sequence[ProviderStatus]: ...
