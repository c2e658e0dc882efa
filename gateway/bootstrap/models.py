"""What knows of models, finds and loads them."""

import gc
import time
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from functools import partial

import anyio
from anyio.abc import TaskGroup

from gateway import demo, providers
from gateway.bootstrap.memory import build_memory
from gateway.bootstrap.stores import Stores
from gateway.core.models import LocalModel, ModelStateChange
from gateway.core.ports import HubRevisions, ModelObserver, ModelRemover, Provider
from gateway.core.rotation import RESERVED
from gateway.core.states import ModelState
from gateway.core.virtual import VirtualModel
from gateway.hub.cache import FileLibrary
from gateway.hub.health import Health
from gateway.hub.leftovers import HubLeftovers
from gateway.hub.library import DiskShelf
from gateway.hub.trial import ChildLoadTester
from gateway.services.catalog import Catalog
from gateway.services.control import ModelControlService
from gateway.services.decision_log import DecisionLog
from gateway.services.downloads import repositories_under_way
from gateway.services.feed import ModelFeed
from gateway.services.leftovers import Leftovers
from gateway.services.library import LibraryService
from gateway.services.memory import MemoryService
from gateway.services.rules import RuleService
from gateway.services.tracker import ModelStateTracker
from gateway.settings import Settings, model_environment
from gateway.telemetry.meter import Meter


@dataclass(frozen=True)
class Models:
    """What knows of models, and has them loaded."""

    providers: Mapping[str, Provider]
    catalog: Catalog
    feed: ModelFeed
    tracker: ModelStateTracker
    control: ModelControlService
    library: LibraryService
    rules: RuleService
    rotations: dict[str, VirtualModel]
    """What each rotation means now, by its full name."""
    memory: MemoryService


def build_models(
    settings: Settings,
    stores: Stores,
    revisions: HubRevisions,
    place: str,
    meter: Meter,
    decisions: DecisionLog,
    restored: anyio.Event,
    tasks: TaskGroup,
) -> Models:
    """`place` names the Hub's cache of this machine; `restored` is set once kept configs hold
    again."""
    built: dict[str, Provider] = {}
    catalog = Catalog(built, timeout_s=settings.catalog_timeout_s, ttl_s=settings.catalog_ttl_s)
    feed = ModelFeed(max_subscribers=settings.max_subscriptions)
    tracker = _build_tracker(settings, stores, catalog, feed)

    def observe(change: ModelStateChange) -> None:
        if change.state is ModelState.LOADING and not meter.transitions:
            gc.freeze()  # torch is here by now, and nothing of a model yet
        meter.model_changed(change)
        tracker.observe(change)

    rotations: dict[str, VirtualModel] = {}
    rules = _build_rules(settings, stores, catalog, rotations)
    control = ModelControlService(
        built, catalog, tasks, aliases=rules.aliases, look_again=tracker.look_again
    )
    removers: dict[str, ModelRemover] = {}
    files, library = _build_library(settings, stores, catalog, control, removers, revisions, place)
    memory = build_memory(settings, decisions.moved)
    # Those above hold the mappings; they are filled now that there is somebody to observe the
    # models.
    built |= _build_providers(settings, files, observe, library.note_used, memory, restored, tasks)
    removers |= {name: each for name, each in built.items() if isinstance(each, ModelRemover)}
    return Models(built, catalog, feed, tracker, control, library, rules, rotations, memory)


def _build_tracker(
    settings: Settings, stores: Stores, catalog: Catalog, feed: ModelFeed
) -> ModelStateTracker:
    return ModelStateTracker(
        catalog,
        stores.models,
        stores.providers,
        feed,
        provider_names=tuple(settings.provider_kinds),
        node=settings.resolved_node,
        interval_s=settings.reconcile_interval_s,
        kinds=settings.provider_kinds,
    )


def _build_rules(
    settings: Settings, stores: Stores, catalog: Catalog, rotations: Container[str]
) -> RuleService:
    return RuleService(
        stores.rules,
        catalog,
        aliases=settings.aliases,
        virtual=settings.virtual_models,
        providers=(*settings.provider_kinds, RESERVED),
        rotations=rotations,
    )


def _build_library(
    settings: Settings,
    stores: Stores,
    catalog: Catalog,
    control: ModelControlService,
    removers: Mapping[str, ModelRemover],
    revisions: HubRevisions,
    place: str,
) -> tuple[FileLibrary, LibraryService]:
    models_folder, hub_cache = settings.resolved_model_path, settings.resolved_hub_cache
    health = Health()
    files = FileLibrary(
        models_folder,
        hub_cache,
        {"demo": demo.MODEL_PATH},
        health=health,
        trust=settings.trust_rules,
    )
    service = LibraryService(
        DiskShelf(files, health, models_folder, hub_cache),
        stores.files,
        catalog,
        control,
        node=settings.resolved_node,
        test_load=ChildLoadTester(
            environment=model_environment(settings),
            memory_bytes=settings.hf_verify_memory_bytes,
            timeout_s=settings.hf_verify_timeout_s,
            threads=settings.hf_threads,
        ),
        removers=removers,
        revisions=revisions,
        under_way=partial(repositories_under_way, stores.downloads, place),
        leftovers=Leftovers(stores.downloads, HubLeftovers(hub_cache), place=place),
    )
    return files, service


def _build_providers(
    settings: Settings,
    files: FileLibrary,
    observe: ModelObserver,
    used: Callable[[LocalModel], None],
    memory: MemoryService,
    restored: anyio.Event,
    tasks: TaskGroup,
) -> dict[str, Provider]:
    return {
        name: providers.load(kind)(
            settings,
            providers.ProviderContext(
                library=files,
                observe=observe,
                task_group=tasks,
                clock=time.monotonic,
                used=used,
                name=name,
                ledger=memory.ledger,
                configured=restored.wait,
            ),
        )
        for name, kind in settings.provider_kinds.items()
    }
