"""Last known states of models in the database. Decides nothing about transitions."""

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Row, bindparam, delete, select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.core.drift import StateDrift, find_drift
from gateway.core.models import ModelStateChange
from gateway.core.names import ModelRef
from gateway.core.states import ModelState
from gateway.store.database import Database
from gateway.store.tables import models

_NO_REVISION = ""
_KEY = (models.c.node, models.c.provider, models.c.model, models.c.revision)


class DatabaseModelStateStore:
    """The ModelStateStore of a real gateway."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def apply(self, node: str, changes: Sequence[ModelStateChange], at: float) -> None:
        if not changes:
            return
        async with self._database.writing() as connection:
            await self._put(connection, node, changes, at)

    async def reconcile(
        self, node: str, provider: str, truth: Sequence[ModelStateChange], at: float
    ) -> Sequence[StateDrift]:
        async with self._database.writing() as connection:
            recorded = await _read_states(connection, node, provider)
            gone = recorded.keys() - {change.ref for change in truth}
            await _remove(connection, node, gone)
            if truth:
                await self._put(connection, node, truth, at)
        return find_drift(recorded, truth)

    async def all(self, node: str) -> Sequence[ModelStateChange]:
        statement = select(models).where(models.c.node == node)
        async with self._database.reading() as connection:
            changes = [_change(row) for row in await connection.execute(statement)]
        # Sorted here: the databases' collations differ.
        return sorted(changes, key=lambda change: str(change.ref))

    async def _put(
        self,
        connection: AsyncConnection,
        node: str,
        changes: Sequence[ModelStateChange],
        at: float,
    ) -> None:
        insert = self._database.insert(models)
        values = ("state", "size_bytes", "message", "updated_at")
        statement = insert.on_conflict_do_update(
            index_elements=_KEY, set_={column: insert.excluded[column] for column in values}
        )
        await connection.execute(statement, [_row(node, change, at) for change in changes])


async def _read_states(
    connection: AsyncConnection, node: str, provider: str
) -> dict[ModelRef, ModelState]:
    mine = models.c.node == node, models.c.provider == provider
    columns = models.c.model, models.c.revision, models.c.state
    found = await connection.execute(select(*columns).where(*mine))
    return {
        ModelRef(provider, row.model, row.revision or None): ModelState(row.state) for row in found
    }


async def _remove(connection: AsyncConnection, node: str, gone: Collection[ModelRef]) -> None:
    # One key at a time: an IN over thousands of names would meet the databases' limits on
    # parameters.
    if gone:
        this = (
            models.c.node == node,
            models.c.provider == bindparam("gone_provider"),
            models.c.model == bindparam("gone_model"),
            models.c.revision == bindparam("gone_revision"),
        )
        keys = [
            {
                "gone_provider": ref.provider,
                "gone_model": ref.model,
                "gone_revision": ref.revision or _NO_REVISION,
            }
            for ref in gone
        ]
        await connection.execute(delete(models).where(*this), keys)


def _row(node: str, change: ModelStateChange, at: float) -> dict[str, object]:
    return {
        "node": node,
        "provider": change.ref.provider,
        "model": change.ref.model,
        "revision": change.ref.revision or _NO_REVISION,
        "state": change.state.value,
        "size_bytes": change.size_bytes,
        "message": change.message,
        "updated_at": at,
    }


def _change(row: Row[Any]) -> ModelStateChange:
    return ModelStateChange(
        ref=ModelRef(row.provider, row.model, row.revision or None),
        state=ModelState(row.state),
        size_bytes=row.size_bytes,
        message=row.message,
    )
