"""What the gateway keeps in its database."""

from dataclasses import dataclass
from typing import Self

from gateway.store.collections import DatabaseCollectionStore
from gateway.store.database import Database
from gateway.store.decisions import DatabaseDecisionStore
from gateway.store.downloads import DatabaseDownloadStore
from gateway.store.keys import DatabaseKeyStore
from gateway.store.library import DatabaseFileStore
from gateway.store.models import DatabaseModelStateStore
from gateway.store.providers import DatabaseProviderStore
from gateway.store.rotations import DatabaseRotationStore
from gateway.store.rules import DatabaseRuleStore
from gateway.store.sessions import DatabaseSessionStore


@dataclass(frozen=True)
class Stores:
    """One store of each kind, over one database."""

    collections: DatabaseCollectionStore
    decisions: DatabaseDecisionStore
    downloads: DatabaseDownloadStore
    files: DatabaseFileStore
    keys: DatabaseKeyStore
    models: DatabaseModelStateStore
    providers: DatabaseProviderStore
    rotations: DatabaseRotationStore
    rules: DatabaseRuleStore
    sessions: DatabaseSessionStore

    @classmethod
    def over(cls, database: Database) -> Self:
        return cls(
            collections=DatabaseCollectionStore(database),
            decisions=DatabaseDecisionStore(database),
            downloads=DatabaseDownloadStore(database),
            files=DatabaseFileStore(database),
            keys=DatabaseKeyStore(database),
            models=DatabaseModelStateStore(database),
            providers=DatabaseProviderStore(database),
            rotations=DatabaseRotationStore(database),
            rules=DatabaseRuleStore(database),
            sessions=DatabaseSessionStore(database),
        )
