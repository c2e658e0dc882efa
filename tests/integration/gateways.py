"""The real services over given providers, with stores in memory."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import anyio
from anyio.abc import TaskGroup

from gateway.core.keys import Peppers
from gateway.core.ports import DownloadSource, Provider, ProviderStore, SessionStore, Tracer
from gateway.core.virtual import VirtualModel, VirtualModels
from gateway.engine.memory.ledger import MemoryLedger
from gateway.services.catalog import Catalog
from gateway.services.control import ModelControlService
from gateway.services.embeddings import EmbeddingService
from gateway.services.feed import ModelFeed
from gateway.services.gatekeeper import Gatekeeper
from gateway.services.gateway import Gateway
from gateway.services.images import ImagePolicy
from gateway.services.keys import KeyService
from gateway.services.metrics import MetricsService
from gateway.services.recorder import SessionRecorder
from gateway.services.router import ModelRouterService
from gateway.services.slots import CallerSlots
from gateway.services.stream_tokens import StreamTokens
from gateway.services.streams import StreamService, choose_limits
from gateway.services.tracker import ModelStateTracker
from gateway.services.wrong_keys import WrongKeys
from gateway.settings import Settings
from gateway.telemetry.meter import Meter
from gateway.telemetry.watchdog import Stalls
from gateway.testing import (
    MemoryJournal,
    MemoryKeyStore,
    MemoryModelStateStore,
    MemoryProviderStore,
    MemorySessionStore,
)
from tests.integration.downloads import build_downloads
from tests.integration.hub_services import hub_services
from tests.integration.rotations import build_rotations
from tests.integration.routing_services import Routing, build_routing
from tests.ledgers import open_memory
from tests.libraries import build_library


@dataclass(frozen=True)
class _Ground:
    """What the services of one gateway are built on."""

    settings: Settings
    tasks: TaskGroup
    providers: dict[str, Provider]
    catalog: Catalog
    routing: Routing
    meter: Meter
    slots: CallerSlots
    rotations: dict[str, VirtualModel]
    """What each rotation means now."""
    tracer: Tracer | None
    node: str

    @property
    def provider_names(self) -> tuple[str, ...]:
        return tuple(self.providers)


def build_gateway(
    settings: Settings,
    tasks: TaskGroup,
    providers: Sequence[Provider],
    *,
    node: str = "test",
    sessions: SessionStore | None = None,
    statuses: ProviderStore | None = None,
    sources: Mapping[str, DownloadSource] | None = None,
    retry_sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    tracer: Tracer | None = None,
    ledger: MemoryLedger | None = None,
) -> Gateway:
    """Return the real services over `providers`, with stores in memory where none are given;
    downloads come from `sources`."""
    sessions, models = sessions or MemorySessionStore(), MemoryModelStateStore()
    statuses, key_store = statuses or MemoryProviderStore(), MemoryKeyStore()
    peppers = Peppers([b"pepper of the tests, 32 characters"])
    ground = _lay_ground(settings, tasks, providers, tracer, node)
    by_name, catalog, routing = ground.providers, ground.catalog, ground.routing
    recorder = SessionRecorder(sessions, MemoryJournal(), node=node, boot="b")
    router = _build_router(ground, retry_sleep)
    streams = _build_streams(ground, router, recorder)
    embeddings = _build_embeddings(ground, router)
    gatekeeper = _build_gatekeeper(ground, key_store, peppers, streams)
    feed = ModelFeed(max_subscribers=settings.max_subscriptions)
    tracker = _build_tracker(ground, models, statuses, feed)
    control = ModelControlService(
        by_name, catalog, tasks, aliases=routing.rules.aliases, look_again=tracker.look_again
    )
    memory = open_memory(ground.provider_names, ledger)
    metrics = MetricsService(
        ground.meter,
        Stalls(),
        providers=by_name,
        streams=streams,
        embeddings=embeddings,
        feed=feed,
        recorder=recorder,
        health=router.health,
        tracker=tracker,
        memory=memory,
        decisions=routing.log,
    )
    rotations = build_rotations(
        by_name,
        catalog,
        router,
        control,
        streams,
        embeddings,
        ground.rotations,
        routing.rules.aliases,
    )
    return Gateway(
        node=node,
        provider_names=ground.provider_names,
        catalog=catalog,
        router=router,
        control=control,
        streams=streams,
        embeddings=embeddings,
        recorder=recorder,
        tracker=tracker,
        feed=feed,
        sessions=sessions,
        model_states=models,
        provider_states=statuses,
        keys=KeyService(key_store, peppers, changed=gatekeeper.look),
        gatekeeper=gatekeeper,
        **build_library(settings, catalog, control, by_name, node, routing),
        **hub_services(settings, tasks),
        metrics=metrics,
        downloads=build_downloads(sources or {}),
        rules=routing.rules,
        decisions=routing.decisions(sessions, router, node),
        rotations=rotations,
        memory=memory,
    )


def _lay_ground(
    settings: Settings,
    tasks: TaskGroup,
    providers: Sequence[Provider],
    tracer: Tracer | None,
    node: str,
) -> _Ground:
    by_name = {provider.name: provider for provider in providers}
    catalog = Catalog(by_name, timeout_s=settings.catalog_timeout_s, ttl_s=0)
    rotations: dict[str, VirtualModel] = {}
    routing = build_routing(settings, catalog, tuple(by_name), rotations)
    return _Ground(
        settings, tasks, by_name, catalog, routing, Meter(), CallerSlots(), rotations, tracer, node
    )


def _build_router(
    ground: _Ground, retry_sleep: Callable[[float], Awaitable[None]]
) -> ModelRouterService:
    settings, rules = ground.settings, ground.routing.rules
    return ModelRouterService(
        ground.providers,
        ground.catalog,
        aliases=rules.aliases,
        images=ImagePolicy(settings.max_image_bytes, settings.max_image_pixels),
        rules=VirtualModels(ground.rotations, rules.virtual),
        max_continuations=settings.max_continuations,
        meter=ground.meter,
        sleep=retry_sleep,
    )


def _build_streams(
    ground: _Ground, router: ModelRouterService, recorder: SessionRecorder
) -> StreamService:
    settings = ground.settings
    return StreamService(
        router,
        recorder,
        ground.tasks,
        node=ground.node,
        limits=choose_limits(settings),
        tokens=StreamTokens(b"secret", lifetime_s=settings.stream_token_s),
        slots=ground.slots,
        meter=ground.meter,
        decisions=ground.routing.log,
        tracer=ground.tracer,
    )


def _build_embeddings(ground: _Ground, router: ModelRouterService) -> EmbeddingService:
    return EmbeddingService(
        router,
        max_open=ground.settings.max_embeds,
        slots=ground.slots,
        meter=ground.meter,
        decisions=ground.routing.log,
        tracer=ground.tracer,
        node=ground.node,
    )


def _build_gatekeeper(
    ground: _Ground, store: MemoryKeyStore, peppers: Peppers, streams: StreamService
) -> Gatekeeper:
    return Gatekeeper(
        store,
        peppers,
        ground.tasks,
        end_streams=streams.end_of,
        wrong_keys=WrongKeys(ground.settings.wrong_keys_per_minute),
    )


def _build_tracker(
    ground: _Ground,
    models: MemoryModelStateStore,
    statuses: ProviderStore,
    feed: ModelFeed,
) -> ModelStateTracker:
    return ModelStateTracker(
        ground.catalog,
        models,
        statuses,
        feed,
        provider_names=ground.provider_names,
        node=ground.node,
        interval_s=ground.settings.reconcile_interval_s,
    )
