"""Collections of models, and the file that carries them, as GraphQL shows them."""

from datetime import datetime
from typing import Annotated

import anyio
import anyio.to_thread
import msgspec
import strawberry

from gateway.core import collections as core
from gateway.core.collections import describe_bundle, read_bundle
from schema.context import Info
from schema.types import to_datetime


@strawberry.type(description="Models that somebody put together.")
class Collection:
    id: strawberry.ID = strawberry.field(description="Stays when the name changes.")
    name: str = strawberry.field(description="No two have the same.")
    category: str = strawberry.field(description="Free text; empty: none.")
    description: str = strawberry.field(description="Free text.")
    models: list[str] = strawberry.field(description="Names of models, which need not be there.")
    created_at: datetime = strawberry.field(description="When it was made.")
    updated_at: datetime = strawberry.field(description="When it was changed last.")

    @classmethod
    def of(cls, collection: core.Collection) -> "Collection":
        return cls(
            id=strawberry.ID(collection.id),
            name=collection.name,
            category=collection.category,
            description=collection.description,
            models=list(collection.models),
            created_at=to_datetime(collection.created_at),
            updated_at=to_datetime(collection.updated_at),
        )


@strawberry.type(description="What an import does; what the file does not name stays as it is.")
class ImportReport:
    creates: list[str] = strawberry.field(description="Names of new collections.")
    replaces: list[str] = strawberry.field(description="Names of collections that become others.")
    unchanged: list[str] = strawberry.field(description="Names of those that are the same.")
    configures: list[str] = strawberry.field(description="Models whose config changes.")
    routes: list[str] = strawberry.field(description="Routes that are made or become others.")
    dry_run: bool = strawberry.field(description="Nothing was changed.")


@strawberry.input(description="A new collection.")
class CreateCollectionInput:
    name: str = strawberry.field(description="1 to 128 characters.")
    category: str = strawberry.field(default="", description="Free text.")
    description: str = strawberry.field(default="", description="Free text.")
    models: list[str] = strawberry.field(
        default_factory=list, description="Names of models, each once."
    )


@strawberry.input(description="What shall be different; what is left out stays as it is.")
class ChangeCollectionInput:
    id: strawberry.ID = strawberry.field(description="Its id or its name.")
    name: str | None = strawberry.field(default=None, description="1 to 128 characters.")
    category: str | None = strawberry.field(default=None, description="Free text.")
    description: str | None = strawberry.field(default=None, description="Free text.")


_Category = Annotated[str | None, strawberry.argument(description="Only those of this category.")]
_Id = Annotated[strawberry.ID, strawberry.argument(description="Its id or its name.")]
_Model = Annotated[str, strawberry.argument(description="The name of a model.")]
_Create = Annotated[CreateCollectionInput, strawberry.argument(description="What it shall be.")]
_Change = Annotated[ChangeCollectionInput, strawberry.argument(description="Which, and what.")]
_File = Annotated[str, strawberry.argument(description="The text that exportLibrary gave.")]
_DryRun = Annotated[bool, strawberry.argument(description="Only tell what it would do.")]


async def list_collections(info: Info, category: _Category = None) -> list[Collection] | None:
    found = await info.context.gateway.collections.all(category)
    return [Collection.of(each) for each in found]


async def export_library(info: Info) -> str | None:
    bundle = await info.context.gateway.collections.export()
    return msgspec.json.encode(describe_bundle(bundle)).decode()


async def create_collection(info: Info, input: _Create) -> Collection | None:
    order = core.CollectionOrder(input.name, input.category, input.description, tuple(input.models))
    return Collection.of(await info.context.gateway.collections.create(order))


async def change_collection(info: Info, input: _Change) -> Collection | None:
    change = core.CollectionChange(input.name, input.category, input.description)
    return Collection.of(await info.context.gateway.collections.change(input.id, change))


async def delete_collection(info: Info, id: _Id) -> Collection | None:
    return Collection.of(await info.context.gateway.collections.remove(id))


async def add_to_collection(info: Info, id: _Id, model: _Model) -> Collection | None:
    return Collection.of(await info.context.gateway.collections.add_model(id, model))


async def remove_from_collection(info: Info, id: _Id, model: _Model) -> Collection | None:
    return Collection.of(await info.context.gateway.collections.remove_model(id, model))


async def import_library(info: Info, file: _File, dry_run: _DryRun = False) -> ImportReport | None:
    data = file.encode(errors="replace")
    # In a thread: a large file holds up nobody else.
    bundle = await anyio.to_thread.run_sync(read_bundle, data)
    context = info.context
    plan = await context.gateway.collections.read_in(bundle, dry_run=dry_run, by=context.caller.id)
    return ImportReport(
        creates=list(plan.creates),
        replaces=list(plan.replaces),
        unchanged=list(plan.unchanged),
        configures=list(plan.configures),
        routes=list(plan.routes),
        dry_run=dry_run,
    )
