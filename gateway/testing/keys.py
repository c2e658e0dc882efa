"""API keys, kept in memory."""

from collections.abc import Sequence

from msgspec.structs import replace

from gateway.core.keys import StoredKey


class MemoryKeyStore:
    """A KeyStore that forgets everything with the process."""

    def __init__(self) -> None:
        self._keys: dict[str, StoredKey] = {}

    async def add(self, stored: StoredKey) -> None:
        self._keys[stored.key.id] = stored

    async def revoke(self, key_id: str, at: float) -> StoredKey | None:
        stored = self._keys.get(key_id)
        if stored is None:
            return None
        if stored.key.revoked_at is None:
            stored = replace(stored, key=replace(stored.key, revoked_at=at))
        self._keys[key_id] = stored
        return stored

    async def all(self) -> Sequence[StoredKey]:
        return sorted(self._keys.values(), key=lambda s: (s.key.created_at, s.key.id))

    async def stamp(self) -> tuple[int, int]:
        revoked = [s for s in self._keys.values() if s.key.revoked_at is not None]
        return len(self._keys), len(revoked)
