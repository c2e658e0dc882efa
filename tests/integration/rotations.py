"""Rotations for tests: real but for their store, which is in memory."""

from collections.abc import Mapping

from gateway.core.ports import Provider
from gateway.core.virtual import VirtualModel
from gateway.services.catalog import Catalog
from gateway.services.control import ModelControlService
from gateway.services.embeddings import EmbeddingService
from gateway.services.handover import Handover
from gateway.services.rotation import ModelRotationService
from gateway.services.router import ModelRouterService
from gateway.services.streams import StreamService
from gateway.testing import MemoryRotationStore


def build_rotations(
    providers: Mapping[str, Provider],
    catalog: Catalog,
    router: ModelRouterService,
    control: ModelControlService,
    streams: StreamService,
    embeddings: EmbeddingService,
    rules: dict[str, VirtualModel],
    aliases: Mapping[str, str],
) -> ModelRotationService:
    """Return the service; no step is taken before `run`."""
    return ModelRotationService(
        MemoryRotationStore(),
        Handover(providers, catalog, router, control, streams, embeddings, aliases=aliases),
        orders={},
        providers=tuple(providers),
        aliases=aliases,
        virtual=(),
        rules=rules,
        node="test",
        boot="b",
        max_watchers=8,
        settle_s=0.0,
    )
