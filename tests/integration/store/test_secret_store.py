"""The contract of every SecretStore, and what the database's own adds: locks and their keys."""

import pytest
from sqlalchemy import text

from gateway.core.errors import SecretUnreadable
from gateway.core.hub import StoredSecret
from gateway.core.ports import SecretStore
from gateway.store.database import Database
from gateway.store.secrets import DatabaseSecretStore
from gateway.store.vault import Vault

OLD, NEW = b"o" * 32, b"n" * 32


async def test_a_secret_comes_back_with_its_time(secret_store: SecretStore) -> None:
    assert await secret_store.get("a") is None
    await secret_store.put("a", "hf_é\x00")
    await secret_store.put("b", "other")
    assert await secret_store.get("a") == StoredSecret("hf_é\x00", 1000.0)


async def test_a_secret_takes_the_place_of_the_one_before(secret_store: SecretStore) -> None:
    await secret_store.put("a", "1")
    await secret_store.put("a", "2")
    found = await secret_store.get("a")
    assert found is not None and found.text == "2"


async def test_a_secret_can_be_forgotten_once(secret_store: SecretStore) -> None:
    await secret_store.put("a", "1")
    assert await secret_store.delete("a") is True
    assert await secret_store.delete("a") is False
    assert await secret_store.get("a") is None


async def locked(database: Database) -> str:
    async with database.reading() as connection:
        row = (await connection.execute(text("SELECT locked FROM secrets"))).one()
    return str(row.locked)


async def test_the_database_holds_nothing_of_the_secret(database: Database) -> None:
    await DatabaseSecretStore(database, Vault([OLD])).put("a", "hf_canary")
    assert "canary" not in await locked(database)


async def test_a_secret_of_another_key_cannot_be_read(database: Database) -> None:
    await DatabaseSecretStore(database, Vault([OLD])).put("a", "1")
    with pytest.raises(SecretUnreadable):
        await DatabaseSecretStore(database, Vault([NEW])).get("a")


async def test_a_rotation_needs_the_old_key_once(database: Database) -> None:
    await DatabaseSecretStore(database, Vault([OLD])).put("a", "1")
    both = DatabaseSecretStore(database, Vault([NEW, OLD]))
    before = await both.get("a")
    assert await both.rotate() == 1
    assert await both.rotate() == 0
    assert await DatabaseSecretStore(database, Vault([NEW])).get("a") == before
    with pytest.raises(SecretUnreadable):
        await DatabaseSecretStore(database, Vault([OLD])).get("a")


async def test_what_cannot_be_read_is_left_for_its_key(database: Database) -> None:
    await DatabaseSecretStore(database, Vault([OLD])).put("a", "1")
    before = await locked(database)
    assert await DatabaseSecretStore(database, Vault([NEW])).rotate() == 0
    assert await locked(database) == before
