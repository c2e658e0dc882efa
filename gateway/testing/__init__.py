"""In-memory doubles for tests. Each passes the same contract suite as the part it stands for."""

from gateway.testing.decisions import MemoryDecisionStore
from gateway.testing.downloads import MemoryDownloadStore
from gateway.testing.hub import MemoryHubCache, MemorySecretStore
from gateway.testing.keys import MemoryKeyStore
from gateway.testing.library import MemoryCollectionStore, MemoryFileStore
from gateway.testing.models import MemoryModelStateStore, MemoryProviderStore
from gateway.testing.rotations import MemoryRotationStore
from gateway.testing.rules import MemoryRuleStore
from gateway.testing.sessions import MemoryJournal, MemorySessionStore

__all__ = [
    "MemoryCollectionStore",
    "MemoryDecisionStore",
    "MemoryDownloadStore",
    "MemoryFileStore",
    "MemoryHubCache",
    "MemoryJournal",
    "MemoryKeyStore",
    "MemoryModelStateStore",
    "MemoryProviderStore",
    "MemoryRotationStore",
    "MemoryRuleStore",
    "MemorySecretStore",
    "MemorySessionStore",
]
