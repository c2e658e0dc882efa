"""What the services need of the world: Protocols that providers, hub and store fulfil."""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import msgspec

from gateway.core.collections import Collection, CollectionChange, CollectionOrder, SavedConfig
from gateway.core.downloads import (
    Download,
    DownloadFault,
    DownloadOrder,
    DownloadPlan,
    DownloadState,
    Fetched,
    Progress,
    Tally,
)
from gateway.core.embeddings import Embeddings, EmbedRequest
from gateway.core.events import Event, Usage
from gateway.core.hub import HubDetails, HubModel, HubQuery, Remembered, StoredSecret
from gateway.core.keys import StoredKey
from gateway.core.library import FileRecord, Inventory, ShelvedModel
from gateway.core.loading import (
    ConfigChange,
    ConfigReport,
    LoadConfig,
    LoadPlan,
    ModelConfig,
    ModelStatus,
)
from gateway.core.messages import GenerateRequest
from gateway.core.models import (
    LocalModel,
    ModelInfo,
    ModelStateChange,
    ProviderStatus,
    Resident,
)
from gateway.core.names import ModelRef
from gateway.core.sessions import Session, SessionClosed, SessionOpened, SessionRecord


class Provider(Protocol):
    """One source of models. A new provider is one file in `gateway/providers`.

    Every method raises only `gateway.core.errors`: vendor exceptions stop at the provider.
    """

    @property
    def name(self) -> str: ...

    async def models(self) -> Sequence[ModelInfo]:
        """Return every model it could serve, with its present state. May hang: callers bound it."""
        ...

    def stream(self, request: GenerateRequest, ref: ModelRef) -> AsyncGenerator[Event, None]:
        """Generate; closing the generator stops the model within a token."""
        ...

    async def embed(self, request: EmbedRequest, ref: ModelRef) -> Embeddings:
        """Return one vector for each input; being cancelled stops the model."""
        ...

    async def resident(self) -> Sequence[Resident]:
        """Return the models in memory now."""
        ...

    async def load(
        self,
        ref: ModelRef,
        config: LoadConfig | None = None,
        *,
        pinned: bool | None = None,
        keep_alive_s: float | None = None,
    ) -> None:
        """Have the model in memory; returns once it is. What is None stays as it is.

        A model that is loaded in another way than `config` is unloaded first, as `unload` does.
        Cancelling the call stops the waiting, not a load that others wait for, too.
        """
        ...

    async def unload(self, ref: ModelRef, *, force: bool = False) -> None:
        """Have the model out of memory; returns once it is.

        Running streams may finish first; with `force` they end with ModelUnloaded. Who waits for
        a load that is under way gets ModelUnloaded.
        """
        ...

    async def plan(self, ref: ModelRef, config: LoadConfig | None = None) -> LoadPlan:
        """Return what `load` would do now. Its `ref` is the one spelling that stands for the
        model. Raises ModelNotFound, UnsupportedCapability."""
        ...

    async def status(self, ref: ModelRef | None = None) -> Sequence[ModelStatus]:
        """Return the status of one model, or of all that are or were asked for."""
        ...

    async def config(self, ref: ModelRef) -> ConfigReport: ...

    async def configure(self, ref: ModelRef, change: ConfigChange) -> ConfigReport:
        """Change the model's config; raises UnsupportedCapability for what cannot be set here."""
        ...

    async def aclose(self) -> None:
        """Let go of connections, threads and models. Called once, last."""
        ...


class ModelLibrary(Protocol):
    """The models whose files are on this machine."""

    def scan(self) -> Sequence[LocalModel]:
        """Return what is there now. Blocking: reads directories."""
        ...

    def find(self, name: str, revision: str | None = None) -> LocalModel | None:
        """Return the model of that name. Blocking; never leaves the library's own folders."""
        ...


class ModelShelf(Protocol):
    """The library's files as such: all that lies in its folders, whether it can be loaded or not.
    Every method is blocking."""

    def inventory(self) -> Inventory: ...

    def find(self, name: str) -> ShelvedModel | None:
        """Return the model of a name as ShelvedModel.name gives it."""
        ...

    def find_fault(self, model: ShelvedModel, go_on: Callable[[], None] | None) -> str | None:
        """Return what is wrong with the headers of its files; with `go_on`, with all their bytes:
        it is called between two looks and may raise to end them."""
        ...

    def find_refusal(self, model: ShelvedModel) -> str | None:
        """Return why a sound model is none that is loaded here."""
        ...

    def find_warnings(self, model: ShelvedModel) -> Sequence[str]: ...

    def judge(self, model: ShelvedModel, reason: str | None) -> None:
        """Have the files, as they are, found with this fault from now on; None: with none."""
        ...

    def remove(self, name: str) -> int:
        """Remove the files that nothing else needs; return the bytes that this freed.

        Of a repository's plain name that is all of the repository. Raises ModelNotFound, and
        Forbidden for what is built in.
        """
        ...

    def empty_trash(self) -> int:
        """Finish removals that were cut off; return the bytes that this freed."""
        ...


class LoadTester(Protocol):
    """Loads models where they can do no harm."""

    async def __call__(self, model: ShelvedModel) -> str | None:
        """Return why the model cannot be loaded; None: it was, and computed.

        Raises ModelTooLarge and ProviderTimeout where the limits ended it, which says nothing of
        the model.
        """
        ...


@runtime_checkable
class ModelRemover(Protocol):
    """A provider that keeps files of its own, and removes them when asked."""

    async def delete(self, ref: ModelRef) -> None:
        """Remove the model's files. Raises ModelNotFound."""
        ...


class HubRevisions(Protocol):
    """What is known of the Hub without asking it now."""

    async def latest_commit(self, repository: str) -> str | None:
        """Return the commit of the branch main; None: unknown."""
        ...


class ModelObserver(Protocol):
    """Is told of every state change of a model, on the event loop, in order; must not block."""

    def __call__(self, change: ModelStateChange) -> None: ...


class SessionMeter(Protocol):
    """Is told of every request once, at its end, on the event loop; must not block."""

    def stream_ended(self, face: str, closed: SessionClosed) -> None: ...

    def embedded(
        self, face: str, ref: ModelRef | None, usage: Usage | None, error: str, seconds: float
    ) -> None:
        """Count a request for embeddings; without `usage` it failed with the code `error`, or was
        cancelled."""
        ...

    def refused(self, code: str) -> None:
        """Count a request that was not let in."""
        ...


class SessionStore(Protocol):
    """Stream sessions. All methods raise DatabaseUnavailable when the database does not answer."""

    async def write(self, opened: Sequence[SessionOpened], closed: Sequence[SessionClosed]) -> None:
        """Record all of it in one transaction, opened first. Writing a record twice is harmless:
        a session opens once and its first end stays."""
        ...

    async def note_usage(self, used: Mapping[str, Usage]) -> None:
        """Record what open sessions used so far, by their ids, in one transaction. What ended, or
        is not there, is left as it is."""
        ...

    async def interrupt_orphans(self, node: str, closed_at: float, *, boot: str) -> int:
        """Close as INTERRUPTED every open session of `node` that another run of it than `boot`
        opened; return how many there were. They keep what was noted of their usage."""
        ...

    async def beat(self, node: str, boot: str) -> None:
        """Take note that the run `boot` of `node` is alive, by the database's clock."""
        ...

    async def interrupt_expired(self, lease_s: float) -> int:
        """Close as INTERRUPTED every open session of a run, of any node, that was last seen more
        than `lease_s` ago, by the database's clock; return how many there were. Of a run that was
        never seen only those that were opened more than a day ago."""
        ...

    async def purge(self, opened_before: float, limit: int) -> int:
        """Delete the oldest sessions opened before that time, at most `limit`, in one
        transaction; return how many there were."""
        ...

    async def recent(self, limit: int) -> Sequence[Session]:
        """Return the newest sessions, newest first."""
        ...

    async def find(self, session_id: str) -> Session | None: ...


class SessionJournal(Protocol):
    """Session records on disk, first in first out, while the database does not take them."""

    @property
    def backlog(self) -> bool:
        """Whether there is anything to read."""
        ...

    @property
    def size_bytes(self) -> int: ...

    async def append(self, records: Sequence[SessionRecord]) -> None:
        """Keep the records; they are safe once this returns. Raises OSError when the disk does not
        take them or the journal is at its bound; then none of them is kept."""
        ...

    async def read(self, limit: int) -> Sequence[SessionRecord]:
        """Return the oldest records, at most `limit`; the same again until `release`."""
        ...

    async def release(self) -> None:
        """Forget what `read` returned last: it is in the database."""
        ...


class ModelStateStore(Protocol):
    """Last known state of each model, keyed by (node, provider, model)."""

    async def apply(self, node: str, changes: Sequence[ModelStateChange], at: float) -> None:
        """Write the changes in order, in one transaction."""
        ...

    async def reconcile(
        self, node: str, provider: str, truth: Sequence[ModelStateChange], at: float
    ) -> None:
        """Make the records of one provider equal to the truth; models not in it are removed."""
        ...

    async def all(self, node: str) -> Sequence[ModelStateChange]: ...


class ProviderStore(Protocol):
    """Last known status of each provider, keyed by (node, name)."""

    async def put(self, node: str, statuses: Sequence[ProviderStatus]) -> None:
        """Insert or replace; `last_seen_at` None keeps the time that is already there."""
        ...

    async def all(self, node: str) -> Sequence[ProviderStatus]: ...


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


class FileStore(Protocol):
    """What is kept of models' files, keyed by (node, path); raises DatabaseUnavailable."""

    async def put(self, node: str, records: Sequence[FileRecord]) -> None:
        """Insert or replace, in one transaction; `first_seen` stays what it is, and `last_used`
        becomes no earlier."""
        ...

    async def forget(self, node: str, paths: Sequence[str]) -> None: ...

    async def all(self, node: str) -> Sequence[FileRecord]:
        """Return every record of a node, by path."""
        ...


class CollectionStore(Protocol):
    """Collections, and the configs of models. All methods raise DatabaseUnavailable."""

    async def collections(self) -> Sequence[Collection]:
        """Return every collection, by name."""
        ...

    async def add(self, collection: Collection) -> None:
        """Add a collection with its models; raises CollectionExists."""
        ...

    async def change(self, id: str, change: CollectionChange, at: float) -> bool:
        """Return whether there is such a collection; raises CollectionExists."""
        ...

    async def remove(self, id: str) -> bool:
        """Return whether there was such a collection."""
        ...

    async def add_model(self, id: str, model: str, at: float) -> bool:
        """Return whether there is such a collection; a model that is in it stays where it is."""
        ...

    async def remove_model(self, id: str, model: str, at: float) -> bool:
        """Return whether the collection had that model."""
        ...

    async def configs(self) -> Mapping[str, ModelConfig]:
        """Return the kept configs, by the models' full names; one that cannot be read is left
        out."""
        ...

    async def put_config(self, saved: SavedConfig, at: float) -> None: ...

    async def put_all(
        self,
        collections: Sequence[tuple[str, CollectionOrder]],
        configs: Sequence[SavedConfig],
        at: float,
    ) -> None:
        """Write all of it in one transaction. Each collection comes with an id for a new one; one
        of the same name is replaced, and keeps its own."""
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


class DownloadSource(Protocol):
    """Where models are downloaded from. Raises only `gateway.core.errors`."""

    @property
    def place(self) -> str:
        """Where its files go: gateways with the same place may go on with each other's work."""
        ...

    async def plan(self, order: DownloadOrder) -> DownloadPlan:
        """Return what `fetch` would do now, without doing it."""
        ...

    async def fetch(
        self, order: DownloadOrder, tally: Tally, *, commit: str | None, since: float
    ) -> Fetched:
        """Have the model; count in `tally` meanwhile. Being cancelled keeps what is there.

        `commit` is what an earlier run found behind the revision, `since` (Unix seconds) when it
        was ordered.
        """
        ...

    async def discard(self, order: DownloadOrder) -> None:
        """Delete what is there of the model and not whole, if nobody works on it."""
        ...


class DownloadObserver(Protocol):
    """Is told when a download has succeeded: the library verifies what came. Raising does not
    change the download."""

    async def __call__(self, download: Download, /) -> None: ...


class Worker(msgspec.Struct, frozen=True):
    """A gateway that runs downloads: its `node`, the run of it, and how long a lease lasts."""

    node: str
    boot: str
    lease_s: float


class DownloadChange(msgspec.Struct, frozen=True):
    """A transition; what is None stays, but for `message` and `error`."""

    state: DownloadState
    message: str | None = None
    error: DownloadFault | None = None
    path: str | None = None
    commit: str | None = None
    progress: Progress | None = None


class DownloadStore(Protocol):
    """The queue of downloads. All methods raise DatabaseUnavailable when the database does not
    answer."""

    async def add(self, download: Download) -> None: ...

    async def find(self, download_id: str) -> Download | None: ...

    async def newest(self, limit: int, states: Sequence[DownloadState] = ()) -> Sequence[Download]:
        """Return the newest downloads, newest first; with `states` only those in one of them."""
        ...

    async def claim(self, worker: Worker, places: Sequence[str]) -> Download | None:
        """Return the oldest one for any of the places that nobody runs, as RUNNING by `worker`.

        What an earlier run of the same node left counts at once, others' when their lease is over.
        """
        ...

    async def keep(
        self, download_id: str, worker: Worker, progress: Progress, commit: str | None
    ) -> bool:
        """Record progress and prolong the lease; False: the worker has it no longer."""
        ...

    async def move(
        self,
        download_id: str,
        change: DownloadChange,
        worker: Worker | None = None,
        *,
        sources: Sequence[DownloadState] = (),
    ) -> Download | None:
        """Do the transition if it is legal now; return the download after it, else None.

        With `worker` only if he still runs it, with `sources` only from one of these.
        """
        ...
