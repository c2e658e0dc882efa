"""API keys in the database, which has their digests only. Checks no key itself."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, func, insert, select, update

from gateway.core.keys import ApiKey, KeyScope, StoredKey
from gateway.store.database import Database
from gateway.store.tables import api_keys

_SCOPES = frozenset(scope.value for scope in KeyScope)


class DatabaseKeyStore:
    """The KeyStore of a real gateway."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, stored: StoredKey) -> None:
        async with self._database.writing() as connection:
            await connection.execute(insert(api_keys).values(_values(stored)))

    async def revoke(self, key_id: str, at: float) -> StoredKey | None:
        mine = api_keys.c.id == key_id
        first = update(api_keys).where(mine, api_keys.c.revoked_at.is_(None)).values(revoked_at=at)
        async with self._database.writing() as connection:
            await connection.execute(first)
            row = (await connection.execute(select(api_keys).where(mine))).first()
        return None if row is None else _stored(row)

    async def all(self) -> Sequence[StoredKey]:
        statement = select(api_keys).order_by(api_keys.c.created_at, api_keys.c.id)
        async with self._database.reading() as connection:
            return [_stored(row) for row in await connection.execute(statement)]

    async def stamp(self) -> tuple[int, int]:
        # Counted and not dated: the clocks of those who write may differ. Rows are never deleted.
        statement = select(func.count(api_keys.c.id), func.count(api_keys.c.revoked_at))
        async with self._database.reading() as connection:
            keys, revoked = (await connection.execute(statement)).one()
        return keys, revoked


def _values(stored: StoredKey) -> dict[str, object]:
    key = stored.key
    return {
        "id": key.id,
        "name": key.name,
        "scopes": [scope.value for scope in key.scopes],
        "digest": stored.digest,
        "pepper": stored.pepper,
        "max_streams": key.max_streams,
        "requests_per_minute": key.requests_per_minute,
        "created_at": key.created_at,
        "revoked_at": key.revoked_at,
    }


def _stored(row: Row[Any]) -> StoredKey:
    key = ApiKey(
        id=row.id,
        name=row.name,
        # A newer gateway may have written scopes that this one does not know.
        scopes=tuple(KeyScope(name) for name in row.scopes if name in _SCOPES),
        created_at=row.created_at,
        max_streams=row.max_streams,
        requests_per_minute=row.requests_per_minute,
        revoked_at=row.revoked_at,
    )
    return StoredKey(key, row.digest, row.pepper)
