"""The models whose files are on this machine, and what is kept of them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from gateway.core.collections import Collection, CollectionChange, CollectionOrder, SavedConfig
from gateway.core.library import FileRecord, Inventory, ShelvedModel
from gateway.core.loading import ModelConfig
from gateway.core.models import LocalModel
from gateway.core.rules import RuleDraft, StoredRule


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

        Raises ModelRefused for what the operator does not allow to it, ModelTooLarge and
        ProviderTimeout where the limits ended it, which says nothing of the model.
        """
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
        routes: Sequence[RuleDraft],
        check: Callable[[Sequence[StoredRule]], None],
        *,
        at: float,
        by: str,
    ) -> None:
        """Write all of it in one transaction, or nothing. Each collection comes with an id for a
        new one; one of the same name is replaced, and keeps its own. Where there are routes,
        `check` is given those there are, as in `RuleStore.put`, and may raise."""
        ...
