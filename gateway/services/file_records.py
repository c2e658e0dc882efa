"""What is kept of the models' files: when they came and were used, and the verdict on them."""

import logging
from collections.abc import Callable, Sequence

import anyio
from msgspec.structs import replace

from gateway.core.errors import DatabaseUnavailable
from gateway.core.library import FileRecord, Inventory, ShelvedModel, Verification
from gateway.core.ports import FileStore

logger = logging.getLogger(__name__)


class FileRecords:
    """The records of one node, in memory and in the store. Who writes after a look at the disk
    holds `lock` from that look on: what came later would be forgotten again."""

    def __init__(self, store: FileStore, *, node: str, now: Callable[[], float]) -> None:
        """`now` is Unix seconds."""
        self._store = store
        self._node = node
        self._now = now
        self._records: dict[str, FileRecord] = {}
        self._used: dict[str, float] = {}
        self._is_loaded = False
        self.lock = anyio.Lock()

    async def load(self) -> None:
        """Read what earlier runs kept, once."""
        if not self._is_loaded:
            kept = {record.path: record for record in await self._store.all(self._node)}
            self._records = kept | self._records
            self._is_loaded = True

    def find(self, model: ShelvedModel) -> FileRecord | None:
        return self._records.get(model.model.path)

    def note_used(self, path: str) -> None:
        """Take note that a model is used now; it is written later."""
        self._used[path] = self._now()

    def last_used(self) -> dict[str, float]:
        """Return when each model was used last, by its path."""
        kept = {path: at for path, r in self._records.items() if (at := r.last_used) is not None}
        return kept | self._used

    def last_used_of(self, model: ShelvedModel) -> float | None:
        """Return when a model was used last, as far as that is known."""
        record, path = self.find(model), model.model.path
        return self._used.get(path, None if record is None else record.last_used)

    def verification_of(self, model: ShelvedModel) -> Verification | None:
        """Return the verdict on the files as they are now."""
        record = self.find(model)
        kept = None if record is None else record.verification
        return kept if kept is not None and kept.stamp == model.stamp else None

    def make(self, model: ShelvedModel, verification: Verification | None) -> FileRecord:
        """Return what is to be kept of a model now."""
        before = self.find(model)
        return self._renewed(
            FileRecord(
                path=model.model.path,
                name=model.name,
                source=model.model.source,
                size_bytes=model.size_bytes,
                first_seen=round(self._now(), 6) if before is None else before.first_seen,
                repository=model.repository,
                commit=model.model.revision,
                last_used=None if before is None else before.last_used,
                verification=verification,
            )
        )

    async def keep(self, records: Sequence[FileRecord]) -> None:
        """Write the records. Raises DatabaseUnavailable; here they are known then, too."""
        self._records |= {record.path: record for record in records}
        await self._store.put(self._node, records)

    async def forget(self, paths: Sequence[str]) -> None:
        """Forget what was removed. Raises DatabaseUnavailable; here it is forgotten then, too."""
        for path in paths:
            self._records.pop(path, None)
            self._used.pop(path, None)
        await self._store.forget(self._node, paths)

    async def forget_missing(self, inventory: Inventory) -> None:
        """Forget what is no longer there."""
        there = {model.model.path for model in inventory.models}
        gone = [path for path in self._records if path not in there]
        for path in gone:
            del self._records[path]
        await self._store.forget(self._node, gone)

    async def write_last(self) -> None:
        """Write when models were used last, for a gateway that stops."""
        records = [self._renewed(record) for record in self._records.values()]
        try:
            await self.keep([r for r in records if r != self._records[r.path]])
        except DatabaseUnavailable as error:
            logger.warning("when models were used last is not recorded: %s", error.message)

    def _renewed(self, record: FileRecord) -> FileRecord:
        at = self._used.get(record.path)
        return record if at is None else replace(record, last_used=round(at, 6))
