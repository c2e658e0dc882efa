"""What the services need of the world: Protocols that providers, hub and store fulfil."""

from gateway.core.ports.downloads import (
    DownloadChange,
    DownloadObserver,
    DownloadSource,
    DownloadStore,
    LeftoverCache,
    Worker,
)
from gateway.core.ports.hub import HubCache, HubRevisions, HubSource, SecretStore
from gateway.core.ports.keys import KeyStore
from gateway.core.ports.library import (
    CollectionStore,
    FileStore,
    LoadTester,
    ModelLibrary,
    ModelShelf,
)
from gateway.core.ports.providers import (
    Continuer,
    Eager,
    ModelObserver,
    ModelRemover,
    Provider,
    StateTeller,
)
from gateway.core.ports.rotations import RotationLook, RotationStore
from gateway.core.ports.routing import DecisionStore, RuleStore
from gateway.core.ports.sessions import (
    RecordStore,
    RouteMeter,
    SessionJournal,
    SessionLog,
    SessionMeter,
    SessionStore,
)
from gateway.core.ports.states import ModelStateStore, ProviderStore
from gateway.core.ports.traces import StreamTrace, Tracer

__all__ = [
    "CollectionStore",
    "Continuer",
    "DecisionStore",
    "DownloadChange",
    "DownloadObserver",
    "DownloadSource",
    "DownloadStore",
    "Eager",
    "FileStore",
    "HubCache",
    "HubRevisions",
    "HubSource",
    "KeyStore",
    "LeftoverCache",
    "LoadTester",
    "ModelLibrary",
    "ModelObserver",
    "ModelRemover",
    "ModelShelf",
    "ModelStateStore",
    "Provider",
    "ProviderStore",
    "RecordStore",
    "RotationLook",
    "RotationStore",
    "RouteMeter",
    "RuleStore",
    "SecretStore",
    "SessionJournal",
    "SessionLog",
    "SessionMeter",
    "SessionStore",
    "StateTeller",
    "StreamTrace",
    "Tracer",
    "Worker",
]
