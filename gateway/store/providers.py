"""Last known status of providers in the database. Checks no provider itself."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, func, select

from gateway.core.models import Capability, ProviderStatus
from gateway.core.states import ProviderState
from gateway.store.database import Database
from gateway.store.tables import providers

_KEY = (providers.c.node, providers.c.name)
_CAPABILITIES = frozenset(capability.value for capability in Capability)


class DatabaseProviderStore:
    """The ProviderStore of a real gateway."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, node: str, statuses: Sequence[ProviderStatus]) -> None:
        if not statuses:
            return
        insert = self._database.insert(providers)
        replaced = ("kind", "state", "checked_at", "error_code", "error_message", "capabilities")
        seen = func.coalesce(insert.excluded.last_seen_at, providers.c.last_seen_at)
        statement = insert.on_conflict_do_update(
            index_elements=_KEY,
            set_={column: insert.excluded[column] for column in replaced} | {"last_seen_at": seen},
        )
        async with self._database.writing() as connection:
            await connection.execute(statement, [_row(node, status) for status in statuses])

    async def all(self, node: str) -> Sequence[ProviderStatus]:
        statement = select(providers).where(providers.c.node == node)
        async with self._database.reading() as connection:
            statuses = [_status(row) for row in await connection.execute(statement)]
        # Sorted here: the databases' collations differ.
        return sorted(statuses, key=lambda status: status.name)


def _row(node: str, status: ProviderStatus) -> dict[str, object]:
    return {
        "node": node,
        "name": status.name,
        "kind": status.kind,
        "state": status.state.value,
        "checked_at": status.checked_at,
        "last_seen_at": status.last_seen_at,
        "error_code": status.error_code,
        "error_message": status.error_message,
        "capabilities": [capability.value for capability in status.capabilities],
    }


def _status(row: Row[Any]) -> ProviderStatus:
    # A newer gateway may have written capabilities that this one does not know.
    known = tuple(Capability(name) for name in row.capabilities if name in _CAPABILITIES)
    return ProviderStatus(
        name=row.name,
        kind=row.kind,
        state=ProviderState(row.state),
        checked_at=row.checked_at,
        last_seen_at=row.last_seen_at,
        error_code=row.error_code,
        error_message=row.error_message,
        capabilities=known,
    )
