"""API keys at rest."""

from collections.abc import Sequence
from typing import Protocol

from gateway.core.keys import StoredKey


class KeyStore(Protocol):
    """API keys. All methods raise DatabaseUnavailable when the database does not answer."""

    async def add(self, stored: StoredKey) -> None: ...

    async def revoke(self, key_id: str, at: float) -> StoredKey | None:
        """Revoke a key, the first time counting; return it, None when there is none."""
        ...

    async def all(self) -> Sequence[StoredKey]:
        """Return every key, revoked ones too, the oldest first."""
        ...

    async def stamp(self) -> tuple[int, int]:
        """Return what differs after every change: how many keys there are, how many revoked."""
        ...
