"""Collections of models, and the file that carries them elsewhere, with the configs of models and
the routes of the database. Pure."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec

from gateway.core.errors import InvalidRequest
from gateway.core.loading import ModelConfig
from gateway.core.messages import require_clean_text
from gateway.core.names import MAX_NAME_LENGTH
from gateway.core.options import require_in_range
from gateway.core.rules import MAX_RULES, RuleDraft, check_draft
from gateway.core.written_config import describe_config, read_config

VERSION = 3
"""Of the file as it is written; a newer one is refused whole. Before 3 configs were spelled
otherwise."""
OLDEST = 1
"""Of the files that are read: it had no routes."""
MAX_COLLECTION_NAME = 128
MAX_DESCRIPTION = 4000
MAX_MODELS = 1000
MAX_COLLECTIONS = 1000

_Models = Annotated[tuple[str, ...], msgspec.Meta(max_length=MAX_MODELS)]


class CollectionOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a collection shall be; `category` is free text, "" is none."""

    name: str
    category: str = ""
    description: str = ""
    models: _Models = ()


class Collection(msgspec.Struct, frozen=True):
    """Models that somebody put together, by their full names, in the order they were added. A
    model need not be there. Times are Unix seconds."""

    id: str
    name: str
    category: str
    description: str
    models: tuple[str, ...]
    created_at: float
    updated_at: float

    @property
    def order(self) -> CollectionOrder:
        return CollectionOrder(self.name, self.category, self.description, self.models)


class CollectionChange(msgspec.Struct, frozen=True):
    """What shall be different; None stays as it is."""

    name: str | None = None
    category: str | None = None
    description: str | None = None


class SavedConfig(msgspec.Struct, frozen=True):
    """What is decided for one model, by its full name."""

    model: str
    config: ModelConfig


class Bundle(msgspec.Struct, frozen=True):
    """What the file says."""

    version: int
    collections: tuple[CollectionOrder, ...]
    configs: tuple[SavedConfig, ...] = ()
    routes: tuple[RuleDraft, ...] = ()


class _Versioned(msgspec.Struct):
    version: int


class _WrittenConfig(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    config: dict[str, Any]


class _File(msgspec.Struct, forbid_unknown_fields=True):
    """A Bundle as it is written."""

    version: int
    collections: Annotated[tuple[CollectionOrder, ...], msgspec.Meta(max_length=MAX_COLLECTIONS)]
    configs: tuple[_WrittenConfig, ...] = ()
    routes: Annotated[tuple[RuleDraft, ...], msgspec.Meta(max_length=MAX_RULES)] = ()


class ImportPlan(msgspec.Struct, frozen=True):
    """What an import does, by the names of collections, of models (`configures`), and of `routes`
    that are made or become others. What the file does not name stays as it is."""

    creates: tuple[str, ...]
    replaces: tuple[str, ...]
    unchanged: tuple[str, ...]
    configures: tuple[str, ...]
    routes: tuple[str, ...]


def read_bundle(data: bytes) -> Bundle:
    """Return the content of a file; raises InvalidRequest for one that is not as it must be."""
    try:
        version = msgspec.json.decode(data, type=_Versioned).version
        if not OLDEST <= version <= VERSION:
            raise InvalidRequest(
                f"The file has version {version}; this gateway reads {OLDEST} to {VERSION}.",
                param="version",
            )
        bundle = _to_bundle(msgspec.json.decode(data, type=_File))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"The file is no export of a gateway: {error}.") from None
    for index, saved in enumerate(bundle.configs):
        require_in_range(saved.config.defaults, f"configs[{index}].config.defaults.")
    for index, order in enumerate(bundle.collections):
        require_sound(order, f"collections[{index}].")
    _require_once([order.name for order in bundle.collections], "collections")
    for draft in bundle.routes:
        check_draft(draft)
    _require_once([saved.model for saved in bundle.configs], "configs")
    _require_once([draft.name for draft in bundle.routes], "routes")
    return bundle


def describe_bundle(bundle: Bundle) -> dict[str, Any]:
    """Return what the file says as `read_bundle` takes it, with configs in the terms of the API."""
    configs = [
        {"model": saved.model, "config": describe_config(saved.config)} for saved in bundle.configs
    ]
    return {**msgspec.to_builtins(bundle), "configs": configs}


def _to_bundle(file: _File) -> Bundle:
    configs = tuple(SavedConfig(each.model, read_config(each.config)) for each in file.configs)
    return Bundle(file.version, file.collections, configs, file.routes)


def plan_import(
    bundle: Bundle,
    collections: Sequence[Collection],
    configs: Mapping[str, ModelConfig],
    routes: Sequence[RuleDraft],
) -> ImportPlan:
    """Return what importing `bundle` does to these collections, configs and routes."""
    known = {collection.name: collection.order for collection in collections}
    known_routes = {draft.name: draft for draft in routes}
    names = [order.name for order in bundle.collections]
    same = {order.name for order in bundle.collections if known.get(order.name) == order}
    return ImportPlan(
        creates=tuple(name for name in names if name not in known),
        replaces=tuple(name for name in names if name in known and name not in same),
        unchanged=tuple(name for name in names if name in same),
        configures=tuple(
            saved.model for saved in bundle.configs if configs.get(saved.model) != saved.config
        ),
        routes=tuple(
            draft.name for draft in bundle.routes if known_routes.get(draft.name) != draft
        ),
    )


def require_sound(order: CollectionOrder, prefix: str = "") -> CollectionOrder:
    """Return the order; raises InvalidRequest and InvalidText for what no collection can be."""
    require_text(order.name, f"{prefix}name", MAX_COLLECTION_NAME, at_least=1)
    require_text(order.category, f"{prefix}category", MAX_COLLECTION_NAME)
    require_text(order.description, f"{prefix}description", MAX_DESCRIPTION)
    if len(order.models) > MAX_MODELS:
        raise InvalidRequest(
            f"'{prefix}models' has more than {MAX_MODELS} names.", param=f"{prefix}models"
        )
    for model in order.models:
        require_text(model, f"{prefix}models", MAX_NAME_LENGTH, at_least=1)
    _require_once(order.models, f"{prefix}models")
    return order


def require_text(text: str, param: str, most: int, *, at_least: int = 0) -> None:
    """Raise InvalidRequest unless the text has that many characters, spaces around not counted."""
    require_clean_text(text, param)
    if len(text) > most or len(text.strip()) < at_least:
        raise InvalidRequest(f"'{param}' has {at_least} to {most} characters.", param=param)


def _require_once(names: Sequence[str], param: str) -> None:
    if len(set(names)) < len(names):
        twice = next(name for index, name in enumerate(names) if name in names[:index])
        raise InvalidRequest(f"'{param}' names '{twice}' twice.", param=param)
