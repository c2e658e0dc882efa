"""What the Hub said, and the Hub's token, kept in memory."""

import time
from collections.abc import Callable, Mapping, Sequence

from msgspec.structs import replace

from gateway.core.hub import Remembered, StoredSecret
from gateway.store.hub_cache import MAX_ENTRIES
from gateway.testing.columns import to_microseconds


class MemoryHubCache:
    """A HubCache that forgets everything with the process."""

    def __init__(self, *, max_entries: int = MAX_ENTRIES) -> None:
        self._entries: dict[str, Remembered] = {}
        self._max_entries = max_entries

    async def get(self, key: str) -> Remembered | None:
        return self._entries.get(key)

    async def get_all(self, keys: Sequence[str]) -> Mapping[str, Remembered]:
        return {key: self._entries[key] for key in keys if key in self._entries}

    async def put(self, key: str, remembered: Remembered) -> None:
        fetched_at = to_microseconds(remembered.fetched_at)
        self._entries[key] = replace(remembered, fetched_at=fetched_at)
        newest = sorted(self._entries, key=lambda name: -self._entries[name].fetched_at)
        for old in newest[self._max_entries :]:
            del self._entries[old]

    async def clear(self) -> None:
        self._entries.clear()


class MemorySecretStore:
    """A SecretStore that forgets everything with the process; nothing in it is at rest."""

    def __init__(self, *, now: Callable[[], float] = time.time) -> None:
        self._secrets: dict[str, StoredSecret] = {}
        self._now = now

    async def put(self, name: str, text: str) -> None:
        self._secrets[name] = StoredSecret(text, to_microseconds(self._now()))

    async def get(self, name: str) -> StoredSecret | None:
        return self._secrets.get(name)

    async def delete(self, name: str) -> bool:
        return self._secrets.pop(name, None) is not None
