"""The contract of every KeyStore."""

import pytest

from gateway.core.keys import ApiKey, KeyScope, StoredKey
from gateway.core.ports import KeyStore

OLDER = StoredKey(
    ApiKey("0a", "olde\u00e9 'OR 1=1;--", (KeyScope.INFER, KeyScope.ADMIN), 1000.25, 3, 60),
    digest="d" * 64,
    pepper="p" * 16,
)
NEWER = StoredKey(ApiKey("0b", "newer", (KeyScope.MANAGE,), 2000.5), "e" * 64, "p" * 16)


async def test_keys_come_back_as_they_were_oldest_first(key_store: KeyStore) -> None:
    await key_store.add(NEWER)
    await key_store.add(OLDER)
    assert list(await key_store.all()) == [OLDER, NEWER]


async def test_the_first_revocation_stays(key_store: KeyStore) -> None:
    await key_store.add(OLDER)
    await key_store.add(NEWER)
    first = await key_store.revoke("0a", 3000.125)
    again = await key_store.revoke("0a", 4000.0)
    assert first is not None and first.key.revoked_at == 3000.125
    assert again == first
    assert [stored.key.revoked_at for stored in await key_store.all()] == [3000.125, None]


@pytest.mark.parametrize("key_id", ["", "0c", "0a' OR '1'='1", "\x00", "0a\ud800"])
async def test_a_key_that_is_not_there_is_not_revoked(key_store: KeyStore, key_id: str) -> None:
    await key_store.add(OLDER)
    assert await key_store.revoke(key_id, 1.0) is None
    assert list(await key_store.all()) == [OLDER]


async def test_the_stamp_differs_after_every_change(key_store: KeyStore) -> None:
    stamps = [await key_store.stamp()]
    await key_store.add(OLDER)
    stamps.append(await key_store.stamp())
    await key_store.add(NEWER)
    stamps.append(await key_store.stamp())
    await key_store.revoke("0b", 1.0)
    stamps.append(await key_store.stamp())
    await key_store.revoke("0b", 2.0)
    assert len(set(stamps)) == len(stamps)
    assert await key_store.stamp() == stamps[-1]
