"""One contract suite for every store: in memory, on SQLite and on PostgreSQL."""

from collections.abc import AsyncIterator

import pytest

from gateway.core.ports import (
    CollectionStore,
    DecisionStore,
    DownloadStore,
    FileStore,
    HubCache,
    KeyStore,
    ModelStateStore,
    ProviderStore,
    RotationStore,
    RuleStore,
    SecretStore,
    SessionStore,
)
from gateway.store.collections import DatabaseCollectionStore
from gateway.store.database import Database
from gateway.store.decisions import DatabaseDecisionStore
from gateway.store.downloads import DatabaseDownloadStore
from gateway.store.hub_cache import DatabaseHubCache
from gateway.store.keys import DatabaseKeyStore
from gateway.store.library import DatabaseFileStore
from gateway.store.models import DatabaseModelStateStore
from gateway.store.providers import DatabaseProviderStore
from gateway.store.rotations import DatabaseRotationStore
from gateway.store.rules import DatabaseRuleStore
from gateway.store.secrets import DatabaseSecretStore
from gateway.store.sessions import DatabaseSessionStore
from gateway.store.vault import Vault
from gateway.testing import (
    MemoryCollectionStore,
    MemoryDecisionStore,
    MemoryDownloadStore,
    MemoryFileStore,
    MemoryHubCache,
    MemoryKeyStore,
    MemoryModelStateStore,
    MemoryProviderStore,
    MemoryRotationStore,
    MemoryRuleStore,
    MemorySecretStore,
    MemorySessionStore,
)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with Database(database_url) as database:
        yield database


@pytest.fixture(params=["memory", "sqlite", "postgres"])
async def backing(request: pytest.FixtureRequest) -> AsyncIterator[Database | None]:
    """What a store stands on; None is memory."""
    if request.param == "memory":
        yield None
        return
    url: str = request.getfixturevalue(f"migrated_{request.param}_url")
    async with Database(url) as database:
        yield database


@pytest.fixture
def session_store(backing: Database | None) -> SessionStore:
    return DatabaseSessionStore(backing) if backing else MemorySessionStore()


@pytest.fixture
def model_store(backing: Database | None) -> ModelStateStore:
    return DatabaseModelStateStore(backing) if backing else MemoryModelStateStore()


@pytest.fixture
def provider_store(backing: Database | None) -> ProviderStore:
    return DatabaseProviderStore(backing) if backing else MemoryProviderStore()


@pytest.fixture
def key_store(backing: Database | None) -> KeyStore:
    return DatabaseKeyStore(backing) if backing else MemoryKeyStore()


@pytest.fixture
def file_store(backing: Database | None) -> FileStore:
    return DatabaseFileStore(backing) if backing else MemoryFileStore()


@pytest.fixture
def collection_store(backing: Database | None) -> CollectionStore:
    return DatabaseCollectionStore(backing) if backing else MemoryCollectionStore()


@pytest.fixture
def hub_cache(backing: Database | None) -> HubCache:
    """A cache of three entries."""
    if backing is None:
        return MemoryHubCache(max_entries=3)
    return DatabaseHubCache(backing, max_entries=3)


@pytest.fixture
def secret_store(backing: Database | None) -> SecretStore:
    """A store whose clock stands at 1,000 s."""
    if backing is None:
        return MemorySecretStore(now=lambda: 1000.0)
    return DatabaseSecretStore(backing, Vault([b"k" * 32]), now=lambda: 1000.0)


@pytest.fixture
def rotation_store(backing: Database | None) -> RotationStore:
    """A store that keeps three steps of each rotation."""
    if backing is None:
        return MemoryRotationStore(kept_steps=3)
    return DatabaseRotationStore(backing, kept_steps=3)


@pytest.fixture
def download_store(backing: Database | None) -> DownloadStore:
    return DatabaseDownloadStore(backing) if backing else MemoryDownloadStore()


@pytest.fixture
def decision_store(backing: Database | None, session_store: SessionStore) -> DecisionStore:
    """A store beside `session_store`."""
    return DatabaseDecisionStore(backing) if backing else MemoryDecisionStore(session_store)


@pytest.fixture
def rule_store(backing: Database | None) -> RuleStore:
    return DatabaseRuleStore(backing) if backing else MemoryRuleStore()
