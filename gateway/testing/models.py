"""The states of models and providers, kept in memory."""

from collections.abc import Sequence

from msgspec.structs import replace

from gateway.core.drift import StateDrift, find_drift
from gateway.core.models import ModelStateChange, ProviderStatus
from gateway.core.names import ModelRef
from gateway.store.tables import clean_count
from gateway.testing.columns import clean_message, to_microseconds


class MemoryModelStateStore:
    """A ModelStateStore that forgets everything with the process."""

    def __init__(self) -> None:
        self._changes: dict[tuple[str, ModelRef], ModelStateChange] = {}

    async def apply(self, node: str, changes: Sequence[ModelStateChange], at: float) -> None:
        for change in changes:
            size_bytes = None if change.size_bytes is None else clean_count(change.size_bytes)
            message = clean_message(change.message)
            stored = replace(change, size_bytes=size_bytes, message=message, reason=None)
            self._changes[node, change.ref] = stored

    async def reconcile(
        self, node: str, provider: str, truth: Sequence[ModelStateChange], at: float
    ) -> Sequence[StateDrift]:
        mine = [key for key in self._changes if key[0] == node and key[1].provider == provider]
        recorded = {key[1]: self._changes.pop(key).state for key in mine}
        await self.apply(node, truth, at)
        return find_drift(recorded, truth)

    async def all(self, node: str) -> Sequence[ModelStateChange]:
        mine = [change for (owner, _), change in self._changes.items() if owner == node]
        return sorted(mine, key=lambda change: str(change.ref))


class MemoryProviderStore:
    """A ProviderStore that forgets everything with the process."""

    def __init__(self) -> None:
        self._statuses: dict[tuple[str, str], ProviderStatus] = {}

    async def put(self, node: str, statuses: Sequence[ProviderStatus]) -> None:
        for status in statuses:
            known = self._statuses.get((node, status.name))
            seen = status.last_seen_at
            if seen is None and known is not None:
                seen = known.last_seen_at
            self._statuses[node, status.name] = replace(
                status,
                checked_at=to_microseconds(status.checked_at),
                last_seen_at=None if seen is None else to_microseconds(seen),
                error_message=clean_message(status.error_message),
            )

    async def all(self, node: str) -> Sequence[ProviderStatus]:
        mine = [status for (owner, _), status in self._statuses.items() if owner == node]
        return sorted(mine, key=lambda status: status.name)
