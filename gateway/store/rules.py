"""Rules of routing in the database. One writer at a time, whichever gateway it is of."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from sqlalchemy import Row, delete, select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.core.errors import RouteChanged
from gateway.core.rules import RuleDraft, StoredRule
from gateway.store.database import Database
from gateway.store.tables import routing_rules, routing_stamp

_ONLY = 1
"""The id of the one row of `routing_stamp`."""


class DatabaseRuleStore:
    """The RuleStore of a real gateway."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(
        self,
        draft: RuleDraft,
        check: Callable[[Sequence[StoredRule]], None],
        *,
        expected: int | None,
        at: float,
        by: str,
    ) -> StoredRule:
        async with self._database.writing() as connection:
            version = await _begin_change(self._database, connection)
            stored = await _read(connection)
            require_version(stored, draft.name, expected)
            check(stored)
            written = StoredRule(draft, version, at, by)
            await _write(self._database, connection, written)
        return written

    async def remove(self, name: str, *, expected: int | None) -> bool:
        async with self._database.writing() as connection:
            await _begin_change(self._database, connection)
            require_version(await _read(connection), name, expected)
            statement = delete(routing_rules).where(routing_rules.c.name == name)
            return bool((await connection.execute(statement)).rowcount)

    async def all(self) -> Sequence[StoredRule]:
        async with self._database.reading() as connection:
            return await _read(connection)

    async def stamp(self) -> int:
        statement = select(routing_stamp.c.version).where(routing_stamp.c.id == _ONLY)
        async with self._database.reading() as connection:
            return (await connection.execute(statement)).scalar() or 0


async def put_rules(
    database: Database,
    connection: AsyncConnection,
    drafts: Sequence[RuleDraft],
    check: Callable[[Sequence[StoredRule]], None],
    *,
    at: float,
    by: str,
) -> None:
    """Insert or replace several rules in the transaction of something greater; `check` is that of
    `put`."""
    version = await _begin_change(database, connection)
    check(await _read(connection))
    for number, draft in enumerate(drafts):
        if number:
            version = await _begin_change(database, connection)
        await _write(database, connection, StoredRule(draft, version, at, by))


def require_version(stored: Sequence[StoredRule], name: str, expected: int | None) -> None:
    """Raise RouteChanged unless the rule has the version that is expected, 0 being none; None is
    any."""
    found = next((each.version for each in stored if each.draft.name == name), 0)
    if expected is not None and found != expected:
        now = f"has version {found}" if found else "is not there"
        raise RouteChanged(f"'{name}' {now}, and not the version {expected}.", param="version")


_CHANGING = ("draft", "version", "updated_at", "updated_by")


async def _begin_change(database: Database, connection: AsyncConnection) -> int:
    """Return the number of this change; others wait until the transaction is over."""
    insert = database.insert(routing_stamp).values(id=_ONLY, version=1)
    statement = insert.on_conflict_do_update(
        index_elements=[routing_stamp.c.id], set_={"version": routing_stamp.c.version + 1}
    )
    done = await connection.execute(statement.returning(routing_stamp.c.version))
    return int(done.scalar_one())


async def _write(database: Database, connection: AsyncConnection, rule: StoredRule) -> None:
    insert = database.insert(routing_rules).values(_values(rule))
    replaced = {name: insert.excluded[name] for name in _CHANGING}
    await connection.execute(
        insert.on_conflict_do_update(index_elements=[routing_rules.c.name], set_=replaced)
    )


async def _read(connection: AsyncConnection) -> list[StoredRule]:
    rows = await connection.execute(select(routing_rules).order_by(routing_rules.c.name))
    found = [_stored(row) for row in rows]
    return [each for each in found if each is not None]


def _stored(row: Row[Any]) -> StoredRule | None:
    try:
        draft = msgspec.convert(row.draft, RuleDraft)
    except msgspec.ValidationError:
        return None  # a newer gateway may have written it
    return StoredRule(draft, row.version, row.updated_at, row.updated_by)


def _values(rule: StoredRule) -> dict[str, object]:
    return {
        "name": rule.draft.name,
        "draft": msgspec.to_builtins(rule.draft),
        "version": rule.version,
        "updated_at": rule.updated_at,
        "updated_by": rule.updated_by,
    }
