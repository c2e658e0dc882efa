"""What the Hub said, kept in the database with the time; forgets the oldest beyond its bound."""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice

from sqlalchemy import delete, select

from gateway.core.hub import Remembered
from gateway.store.database import Database
from gateway.store.tables import hub_metadata

MAX_ENTRIES = 500


class DatabaseHubCache:
    """The HubCache of a real gateway. Keys are stored as digests: they may be long."""

    def __init__(self, database: Database, *, max_entries: int = MAX_ENTRIES) -> None:
        self._database = database
        self._max_entries = max_entries

    async def get(self, key: str) -> Remembered | None:
        statement = select(hub_metadata).where(hub_metadata.c.key == _digest(key))
        async with self._database.reading() as connection:
            row = (await connection.execute(statement)).first()
        return None if row is None else Remembered(row.body, row.fetched_at)

    async def get_all(self, keys: Sequence[str]) -> Mapping[str, Remembered]:
        by_digest = {_digest(key): key for key in keys}
        found: dict[str, Remembered] = {}
        async with self._database.reading() as connection:
            for some in _batched(by_digest, MAX_ENTRIES):
                chosen = select(hub_metadata).where(hub_metadata.c.key.in_(some))
                for row in await connection.execute(chosen):
                    found[by_digest[row.key]] = Remembered(row.body, row.fetched_at)
        return found

    async def put(self, key: str, remembered: Remembered) -> None:
        values = {"body": remembered.body, "fetched_at": remembered.fetched_at}
        insert = self._database.insert(hub_metadata).values(key=_digest(key), **values)
        newest = (
            select(hub_metadata.c.key)
            .order_by(hub_metadata.c.fetched_at.desc())
            .limit(self._max_entries)
        )
        async with self._database.writing() as connection:
            await connection.execute(
                insert.on_conflict_do_update(index_elements=["key"], set_=values)
            )
            await connection.execute(delete(hub_metadata).where(hub_metadata.c.key.not_in(newest)))

    async def clear(self) -> None:
        async with self._database.writing() as connection:
            await connection.execute(delete(hub_metadata))


def _batched(keys: Collection[str], size: int) -> Iterator[list[str]]:
    """Yield the keys in lists of that size: databases bound how many values one question has."""
    rest = iter(keys)
    while some := list(islice(rest, size)):
        yield some


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
