"""The library's services over given folders, for the servers of the tests."""

from collections.abc import Mapping
from typing import Any

from gateway.core.library import ShelvedModel
from gateway.core.ports import ModelRemover, Provider
from gateway.hub.cache import FileLibrary
from gateway.hub.health import Health
from gateway.hub.leftovers import HubLeftovers
from gateway.hub.library import DiskShelf
from gateway.services.catalog import Catalog
from gateway.services.collections import CollectionService
from gateway.services.configs import ConfigService
from gateway.services.control import ModelControlService
from gateway.services.leftovers import Leftovers
from gateway.services.library import LibraryService
from gateway.settings import Settings
from gateway.testing import MemoryCollectionStore, MemoryDownloadStore, MemoryFileStore
from tests.integration.routing_services import Routing


async def find_nothing(_model: ShelvedModel) -> None:
    """A LoadTester that finds no fault; loads are tested where there are models to load."""


def build_library(
    settings: Settings,
    catalog: Catalog,
    control: ModelControlService,
    providers: Mapping[str, Provider],
    node: str,
    routing: Routing,
) -> dict[str, Any]:
    """Return the parts of a Gateway that look after models' files, with stores in memory."""
    folders = settings.resolved_model_path, settings.resolved_hub_cache
    health = Health()
    files = FileLibrary(*folders, health=health, trust=settings.trust_rules)
    store = MemoryCollectionStore(routing.store)
    configs = ConfigService(store, control)
    return {
        "library": LibraryService(
            DiskShelf(files, health, *folders),
            MemoryFileStore(),
            catalog,
            control,
            node=node,
            test_load=find_nothing,
            leftovers=Leftovers(
                MemoryDownloadStore(), HubLeftovers(settings.resolved_hub_cache), place="here"
            ),
            removers={k: each for k, each in providers.items() if isinstance(each, ModelRemover)},
        ),
        "configs": configs,
        "collections": CollectionService(store, configs, routing.rules),
    }
