"""The Hugging Face Hub, and what is remembered of it."""

from typing import Protocol

from gateway.core.hub import HubDetails, HubModel, HubQuery, Remembered, StoredSecret


class HubRevisions(Protocol):
    """What is known of the Hub without asking it now."""

    async def latest_commit(self, repository: str) -> str | None:
        """Return the commit of the branch main; None: unknown."""
        ...


class HubSource(Protocol):
    """The Hub. All methods raise HubError."""

    async def search(self, query: HubQuery) -> tuple[HubModel, ...]: ...

    async def details(self, repository: str) -> HubDetails:
        """Return what the Hub tells of one model, and what loading it would take."""
        ...


class HubCache(Protocol):
    """What the Hub said. All methods raise DatabaseUnavailable."""

    async def get(self, key: str) -> Remembered | None: ...

    async def put(self, key: str, remembered: Remembered) -> None:
        """Keep it in the place of what was there; the oldest entries may go."""
        ...

    async def clear(self) -> None: ...


class SecretStore(Protocol):
    """Secrets, locked at rest. All methods raise DatabaseUnavailable."""

    async def put(self, name: str, text: str) -> None: ...

    async def get(self, name: str) -> StoredSecret | None:
        """Return a secret; raises SecretUnreadable when it was locked with another key."""
        ...

    async def delete(self, name: str) -> bool:
        """Forget a secret; return whether there was one."""
        ...
