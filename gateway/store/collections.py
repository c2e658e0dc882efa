"""Collections of models, and the configs of models, in the database."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
from sqlalchemy import delete, exc, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.core.collections import Collection, CollectionChange, CollectionOrder, SavedConfig
from gateway.core.errors import CollectionExists
from gateway.core.loading import ModelConfig
from gateway.core.names import ModelRef, parse_ref
from gateway.core.rules import RuleDraft, StoredRule
from gateway.store.database import Database
from gateway.store.rules import put_rules
from gateway.store.tables import collection_models, collections, model_configs

_NO_REVISION = ""


class DatabaseCollectionStore:
    """The CollectionStore of a real gateway."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def collections(self) -> Sequence[Collection]:
        models: dict[str, list[str]] = {}
        members = select(collection_models).order_by(collection_models.c.added_at)
        async with self._database.reading() as connection:
            rows = list(await connection.execute(select(collections)))
            for member in await connection.execute(members):
                models.setdefault(member.collection_id, []).append(member.model)
        found = [
            Collection(
                id=row.id,
                name=row.name,
                category=row.category,
                description=row.description,
                models=tuple(models.get(row.id, ())),
                created_at=row.created_at,
                updated_at=row.updated_at,
            )
            for row in rows
        ]
        return sorted(found, key=lambda collection: collection.name)

    async def add(self, collection: Collection) -> None:
        with _names_once(collection.name):
            async with self._database.writing() as connection:
                await _insert(connection, collection.id, collection.order, collection.created_at)

    async def change(self, id: str, change: CollectionChange, at: float) -> bool:
        given = msgspec.structs.asdict(change).items()
        values = {name: value for name, value in given if value is not None}
        statement = update(collections).where(collections.c.id == id)
        with _names_once(change.name or ""):
            async with self._database.writing() as connection:
                done = await connection.execute(statement.values(updated_at=at, **values))
        return bool(done.rowcount)

    async def remove(self, id: str) -> bool:
        async with self._database.writing() as connection:
            done = await connection.execute(delete(collections).where(collections.c.id == id))
        return bool(done.rowcount)

    async def add_model(self, id: str, model: str, at: float) -> bool:
        put = self._database.insert(collection_models)
        async with self._database.writing() as connection:
            touched = await _touch(connection, id, at)
            if touched:
                row = {"collection_id": id, "model": model, "added_at": at}
                await connection.execute(put.values(row).on_conflict_do_nothing())
        return touched

    async def remove_model(self, id: str, model: str, at: float) -> bool:
        this = collection_models.c.collection_id == id, collection_models.c.model == model
        async with self._database.writing() as connection:
            done = await connection.execute(delete(collection_models).where(*this))
            if done.rowcount:
                await _touch(connection, id, at)
        return bool(done.rowcount)

    async def configs(self) -> Mapping[str, ModelConfig]:
        found: dict[str, ModelConfig] = {}
        async with self._database.reading() as connection:
            for row in await connection.execute(select(model_configs)):
                ref = ModelRef(row.provider, row.model, row.revision or None)
                try:
                    found[str(ref)] = msgspec.convert(row.config, ModelConfig)
                except msgspec.ValidationError:
                    continue  # a newer gateway may have written it
        return dict(sorted(found.items()))

    async def put_config(self, saved: SavedConfig, at: float) -> None:
        async with self._database.writing() as connection:
            await self._put_configs(connection, [saved], at)

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
        async with self._database.writing() as connection:
            if routes:
                # First: whoever changes routes waits for one lock.
                await put_rules(self._database, connection, routes, check, at=at, by=by)
            for new_id, order in collections:
                await _replace(connection, new_id, order, at)
            await self._put_configs(connection, configs, at)

    async def _put_configs(
        self, connection: AsyncConnection, configs: Sequence[SavedConfig], at: float
    ) -> None:
        if not configs:
            return
        put = self._database.insert(model_configs)
        statement = put.on_conflict_do_update(
            index_elements=[
                model_configs.c.provider,
                model_configs.c.model,
                model_configs.c.revision,
            ],
            set_={"config": put.excluded.config, "updated_at": put.excluded.updated_at},
        )
        await connection.execute(statement, [_config_row(saved, at) for saved in configs])


@contextmanager
def _names_once(name: str) -> Iterator[None]:
    try:
        yield
    except exc.IntegrityError:
        raise CollectionExists(f"There is a collection '{name}' already.", param="name") from None


async def _insert(connection: AsyncConnection, id: str, order: CollectionOrder, at: float) -> None:
    row = {
        "id": id,
        "name": order.name,
        "category": order.category,
        "description": order.description,
        "created_at": at,
        "updated_at": at,
    }
    await connection.execute(insert(collections).values(row))
    await _insert_models(connection, id, order, at)


async def _insert_models(
    connection: AsyncConnection, id: str, order: CollectionOrder, at: float
) -> None:
    # A microsecond apart, which is what keeps their order.
    rows = [
        {"collection_id": id, "model": model, "added_at": at + index * 1e-6}
        for index, model in enumerate(order.models)
    ]
    if rows:
        await connection.execute(insert(collection_models), rows)


async def _replace(
    connection: AsyncConnection, new_id: str, order: CollectionOrder, at: float
) -> None:
    same_name = select(collections.c.id).where(collections.c.name == order.name)
    known = (await connection.execute(same_name)).scalar()
    if known is None:
        await _insert(connection, new_id, order, at)
        return
    values = {"category": order.category, "description": order.description, "updated_at": at}
    await connection.execute(update(collections).where(collections.c.id == known).values(values))
    mine = collection_models.c.collection_id == known
    await connection.execute(delete(collection_models).where(mine))
    await _insert_models(connection, known, order, at)


async def _touch(connection: AsyncConnection, id: str, at: float) -> bool:
    statement = update(collections).where(collections.c.id == id).values(updated_at=at)
    return bool((await connection.execute(statement)).rowcount)


def _config_row(saved: SavedConfig, at: float) -> dict[str, Any]:
    provider, _, name = saved.model.partition("/")
    ref = parse_ref(provider, name)
    return {
        "provider": ref.provider,
        "model": ref.model,
        "revision": ref.revision or _NO_REVISION,
        "config": msgspec.to_builtins(saved.config),
        "updated_at": at,
    }
