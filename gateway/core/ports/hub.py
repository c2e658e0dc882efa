"""The Hugging Face Hub, and what is remembered of it."""

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from gateway.core.errors import GatewayError
from gateway.core.hub import HubDetails, HubModel, HubQuery, Remembered, StoredSecret


class HubRevisions(Protocol):
    """The newest commits of repositories on the Hub."""

    async def latest_commits(self, repositories: Collection[str]) -> Mapping[str, str]:
        """Return the commit of the branch main of those where it is remembered; the Hub is not
        asked."""
        ...

    async def look_up(self, repositories: Collection[str]) -> GatewayError | None:
        """Ask the Hub for those that are not remembered, or for too long; return why it could not
        be asked. One that it does not show stays as it is."""
        ...


class HubSource(Protocol):
    """The Hub. All methods raise HubError."""

    async def search(self, query: HubQuery) -> tuple[HubModel, ...]: ...

    async def details(self, repository: str) -> HubDetails:
        """Return what the Hub tells of one model, and what loading it would take."""
        ...

    async def latest_commit(self, repository: str) -> str:
        """Return the commit of the branch main."""
        ...


class HubCache(Protocol):
    """What the Hub said. All methods raise DatabaseUnavailable."""

    async def get(self, key: str) -> Remembered | None: ...

    async def get_all(self, keys: Sequence[str]) -> Mapping[str, Remembered]:
        """Return those that are there, by their keys."""
        ...

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
