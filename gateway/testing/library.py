"""What is known of models' files, collections and configs, kept in memory."""

from collections.abc import Callable, Mapping, Sequence

from msgspec.structs import asdict, replace

from gateway.core.collections import Collection, CollectionChange, CollectionOrder, SavedConfig
from gateway.core.errors import CollectionExists
from gateway.core.library import FileRecord
from gateway.core.loading import ModelConfig
from gateway.core.rules import RuleDraft, StoredRule
from gateway.testing.rules import MemoryRuleStore


class MemoryFileStore:
    """A FileStore that forgets everything with the process."""

    def __init__(self) -> None:
        self._records: dict[tuple[str, str], FileRecord] = {}

    async def put(self, node: str, records: Sequence[FileRecord]) -> None:
        for record in records:
            known = self._records.get((node, record.path))
            if known is not None:
                times = [at for at in (known.last_used, record.last_used) if at is not None]
                last_used = max(times, default=None)
                record = replace(record, first_seen=known.first_seen, last_used=last_used)
            self._records[node, record.path] = record

    async def forget(self, node: str, paths: Sequence[str]) -> None:
        for path in paths:
            self._records.pop((node, path), None)

    async def all(self, node: str) -> Sequence[FileRecord]:
        mine = [record for (owner, _), record in self._records.items() if owner == node]
        return sorted(mine, key=lambda record: record.path)


class MemoryCollectionStore:
    """A CollectionStore that forgets everything with the process."""

    def __init__(self, rules: MemoryRuleStore | None = None) -> None:
        """`rules` is where routes are, which an import brings, too."""
        self._rules = rules or MemoryRuleStore()
        self._collections: dict[str, Collection] = {}
        self._configs: dict[str, ModelConfig] = {}

    async def collections(self) -> Sequence[Collection]:
        return sorted(self._collections.values(), key=lambda each: each.name)

    async def add(self, collection: Collection) -> None:
        self._require_new(collection.name, collection.id)
        self._collections[collection.id] = collection

    async def change(self, id: str, change: CollectionChange, at: float) -> bool:
        if id not in self._collections:
            return False
        if change.name is not None:
            self._require_new(change.name, id)
        given = {name: value for name, value in asdict(change).items() if value is not None}
        self._collections[id] = replace(self._collections[id], updated_at=at, **given)
        return True

    async def remove(self, id: str) -> bool:
        return self._collections.pop(id, None) is not None

    async def add_model(self, id: str, model: str, at: float) -> bool:
        if id not in self._collections:
            return False
        known = self._collections[id]
        models = tuple(dict.fromkeys((*known.models, model)))
        self._collections[id] = replace(known, models=models, updated_at=at)
        return True

    async def remove_model(self, id: str, model: str, at: float) -> bool:
        known = self._collections.get(id)
        if known is None or model not in known.models:
            return False
        models = tuple(each for each in known.models if each != model)
        self._collections[id] = replace(known, models=models, updated_at=at)
        return True

    async def configs(self) -> Mapping[str, ModelConfig]:
        return dict(sorted(self._configs.items()))

    async def put_config(self, saved: SavedConfig, at: float) -> None:
        self._configs[saved.model] = saved.config

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
        if routes:
            check(await self._rules.all())
        for draft in routes:
            await self._rules.put(draft, lambda _: None, expected=None, at=at, by=by)
        for new_id, order in collections:
            known = next((c for c in self._collections.values() if c.name == order.name), None)
            kept = (new_id, at) if known is None else (known.id, known.created_at)
            self._collections[kept[0]] = Collection(
                id=kept[0], created_at=kept[1], updated_at=at, **asdict(order)
            )
        for saved in configs:
            await self.put_config(saved, at)

    def _require_new(self, name: str, id: str) -> None:
        if any(each.name == name and each.id != id for each in self._collections.values()):
            raise CollectionExists(f"There is a collection '{name}' already.", param="name")
