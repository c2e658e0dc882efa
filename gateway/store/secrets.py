"""Secrets in the database, locked by a Vault."""

from collections.abc import Callable
from time import time

from sqlalchemy import delete, select, update

from gateway.core.errors import SecretUnreadable
from gateway.core.hub import StoredSecret
from gateway.store.database import Database
from gateway.store.tables import secrets
from gateway.store.vault import Vault


class DatabaseSecretStore:
    """The SecretStore of a real gateway."""

    def __init__(
        self, database: Database, vault: Vault, *, now: Callable[[], float] = time
    ) -> None:
        self._database = database
        self._vault = vault
        self._now = now

    async def put(self, name: str, text: str) -> None:
        values = {"locked": self._vault.lock(text), "updated_at": self._now()}
        statement = self._database.insert(secrets).values(name=name, **values)
        async with self._database.writing() as connection:
            await connection.execute(
                statement.on_conflict_do_update(index_elements=["name"], set_=values)
            )

    async def get(self, name: str) -> StoredSecret | None:
        statement = select(secrets).where(secrets.c.name == name)
        async with self._database.reading() as connection:
            row = (await connection.execute(statement)).first()
        return None if row is None else StoredSecret(self._vault.open(row.locked), row.updated_at)

    async def delete(self, name: str) -> bool:
        async with self._database.writing() as connection:
            done = await connection.execute(delete(secrets).where(secrets.c.name == name))
        return bool(done.rowcount)

    async def rotate(self) -> int:
        """Lock anew, with the newest key, what was locked with an older one; return how many
        secrets that were. What cannot be read stays as it is."""
        async with self._database.reading() as connection:
            rows = (await connection.execute(select(secrets))).all()
        old = [row for row in rows if not self._vault.is_newest(row.locked)]
        done = 0
        for row in old:
            done += await self._lock_anew(row.name, row.locked)
        return done

    async def _lock_anew(self, name: str, locked: str) -> bool:
        try:
            fresh = self._vault.lock(self._vault.open(locked))
        except SecretUnreadable:
            return False
        same = (secrets.c.name == name) & (secrets.c.locked == locked)
        async with self._database.writing() as connection:
            done = await connection.execute(update(secrets).where(same).values(locked=fresh))
        return bool(done.rowcount)
