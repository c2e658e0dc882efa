"""CollectionService: collections of models, and the file that carries them, configs and routes."""

import secrets
import time
from collections.abc import Callable, Sequence

import msgspec

from gateway.core.collections import (
    MAX_COLLECTION_NAME,
    MAX_DESCRIPTION,
    MAX_MODELS,
    VERSION,
    Bundle,
    Collection,
    CollectionChange,
    CollectionOrder,
    ImportPlan,
    SavedConfig,
    plan_import,
    require_sound,
    require_text,
)
from gateway.core.errors import CollectionNotFound, InvalidRequest, ModelNotFound
from gateway.core.names import MAX_NAME_LENGTH, parse_ref
from gateway.core.ports import CollectionStore
from gateway.core.rules import RuleDraft
from gateway.services.configs import ConfigService
from gateway.services.rules import RuleService


class CollectionService:
    """Every method raises DatabaseUnavailable when the database does not answer."""

    def __init__(
        self,
        store: CollectionStore,
        configs: ConfigService,
        rules: RuleService,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._configs = configs
        self._rules = rules
        self._now = now

    async def all(self, category: str | None = None) -> list[Collection]:
        """Return the collections, or those of one category, by name."""
        found = await self._store.collections()
        return [each for each in found if category in (None, each.category)]

    async def find(self, key: str) -> Collection:
        """Return the collection of that id, or of that name; raises CollectionNotFound."""
        found = await self._store.collections()
        for each in sorted(found, key=lambda each: each.id != key):
            if key in (each.id, each.name):
                return each
        raise CollectionNotFound(f"There is no collection '{key}'.", param="id")

    async def create(self, order: CollectionOrder) -> Collection:
        """Return a new collection; raises InvalidRequest and CollectionExists."""
        require_sound(order)
        at = self._time()
        made = Collection(
            id=secrets.token_hex(8),
            name=order.name,
            category=order.category,
            description=order.description,
            models=order.models,
            created_at=at,
            updated_at=at,
        )
        await self._store.add(made)
        return made

    async def change(self, key: str, change: CollectionChange) -> Collection:
        """Return the collection, changed; raises CollectionNotFound and CollectionExists."""
        limits = {"name": MAX_COLLECTION_NAME, "category": MAX_COLLECTION_NAME}
        for field, text in msgspec.structs.asdict(change).items():
            if text is not None:
                most = limits.get(field, MAX_DESCRIPTION)
                require_text(text, field, most, at_least=int(field == "name"))
        found = await self.find(key)
        if not await self._store.change(found.id, change, self._time()):
            raise CollectionNotFound(f"There is no collection '{key}'.", param="id")
        return await self.find(found.id)

    async def remove(self, key: str) -> Collection:
        """Return the collection that was removed; its models stay. Raises CollectionNotFound."""
        found = await self.find(key)
        if not await self._store.remove(found.id):
            raise CollectionNotFound(f"There is no collection '{key}'.", param="id")
        return found

    async def add_model(self, key: str, model: str) -> Collection:
        """Return the collection with the model, which need not be there yet; once more is
        harmless."""
        require_text(model, "model", MAX_NAME_LENGTH, at_least=1)
        found = await self.find(key)
        if len(found.models) >= MAX_MODELS:
            raise InvalidRequest(f"A collection has at most {MAX_MODELS} models.", param="model")
        await self._store.add_model(found.id, model, self._time())
        return await self.find(found.id)

    async def remove_model(self, key: str, model: str) -> Collection:
        """Return the collection without the model; raises ModelNotFound if it was not in it."""
        found = await self.find(key)
        if not await self._store.remove_model(found.id, model, self._time()):
            raise ModelNotFound(model, message=f"'{model}' is not in '{found.name}'.")
        return await self.find(found.id)

    async def export(self) -> Bundle:
        """Return all collections, all kept configs, and all routes of the database."""
        collections = await self._store.collections()
        configs = await self._store.configs()
        return Bundle(
            VERSION,
            tuple(each.order for each in collections),
            tuple(SavedConfig(model, config) for model, config in configs.items()),
            tuple(await self._rules.export()),
        )

    async def read_in(self, bundle: Bundle, *, dry_run: bool = False, by: str = "") -> ImportPlan:
        """Import a file: all of it in one transaction, or nothing; return what that does. `by` is
        the id of the key that wants it.

        Raises InvalidRequest for a config that its model cannot have and for routes that do not
        hold together with those there are, RouteReadOnly for a route of the configuration. Models
        that are not here get their config once they are and the gateway starts.
        """
        for saved in bundle.configs:
            _require_ref(saved.model)
        plan = plan_import(
            bundle,
            await self._store.collections(),
            await self._store.configs(),
            await self._rules.export(),
        )
        changed = frozenset(plan.routes)
        routes = [draft for draft in bundle.routes if draft.name in changed]
        await self._rules.require_possible(routes)
        if not dry_run:
            await self._write(bundle, plan, routes, by)
        return plan

    async def _write(
        self, bundle: Bundle, plan: ImportPlan, routes: Sequence[RuleDraft], by: str
    ) -> None:
        changed = {*plan.creates, *plan.replaces}
        orders = [order for order in bundle.collections if order.name in changed]
        configs = [saved for saved in bundle.configs if saved.model in plan.configures]
        with_ids = [(secrets.token_hex(8), order) for order in orders]
        check = self._rules.checking(routes)
        await self._store.put_all(with_ids, configs, routes, check, at=self._time(), by=by)
        await self._configs.apply(configs)
        await self._rules.load()

    def _time(self) -> float:
        return round(self._now(), 6)


def _require_ref(name: str) -> None:
    provider, slash, rest = name.partition("/")
    if not slash or not provider:
        raise InvalidRequest(f"'{name}' is no full name: provider/name.", param="configs")
    parse_ref(provider, rest)
