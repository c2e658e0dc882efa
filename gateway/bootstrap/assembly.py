"""Puts the services together."""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import anyio
from anyio.abc import TaskGroup

from gateway.bootstrap.downloads import build_downloads
from gateway.bootstrap.hub import Hub
from gateway.bootstrap.models import Models, build_models
from gateway.bootstrap.stores import Stores
from gateway.core.keys import Peppers
from gateway.core.ports import Provider, Tracer
from gateway.core.virtual import VirtualModels
from gateway.hub.place import name_place
from gateway.services.collections import CollectionService
from gateway.services.configs import ConfigService
from gateway.services.decision_log import DecisionLog
from gateway.services.decisions import DecisionService
from gateway.services.embeddings import EmbeddingService
from gateway.services.gatekeeper import Gatekeeper
from gateway.services.gateway import Gateway
from gateway.services.handover import Handover
from gateway.services.images import ImagePolicy
from gateway.services.keys import KeyService
from gateway.services.metrics import MetricsService
from gateway.services.recorder import SessionRecorder
from gateway.services.rotation import LEASE_S, ModelRotationService
from gateway.services.router import ModelRouterService
from gateway.services.slots import CallerSlots
from gateway.services.stream_tokens import StreamTokens
from gateway.services.streams import StreamService, choose_limits
from gateway.services.wrong_keys import WrongKeys
from gateway.settings import Settings
from gateway.store.journal import FileJournal
from gateway.store.open_log import FileOpenLog
from gateway.telemetry.meter import Meter
from gateway.telemetry.watchdog import Stalls


@dataclass(frozen=True)
class Requests:
    """What requests go through once they are let in."""

    recorder: SessionRecorder
    router: ModelRouterService
    streams: StreamService
    embeddings: EmbeddingService
    decisions: DecisionService
    rotations: ModelRotationService


@dataclass(frozen=True)
class _Ground:
    """What all of these are built on."""

    settings: Settings
    stores: Stores
    models: Models
    meter: Meter
    log: DecisionLog
    boot: str
    tracer: Tracer | None
    tasks: TaskGroup

    @property
    def node(self) -> str:
        return self.settings.resolved_node


def assemble(
    settings: Settings,
    stores: Stores,
    journal: FileJournal,
    peppers: Peppers,
    hub: Hub,
    boot: str,
    tracer: Tracer | None,
    tasks: TaskGroup,
) -> tuple[Gateway, Mapping[str, Provider]]:
    """Return the gateway, and its providers, which are the caller's to close.

    What the gateway does by itself is not begun, but for what its providers do.
    """
    meter, log = Meter(), DecisionLog()
    place = name_place(settings.resolved_hub_cache)
    restored = anyio.Event()
    models = build_models(settings, stores, hub.service, place, meter, log, restored, tasks)
    ground = _Ground(settings, stores, models, meter, log, boot, tracer, tasks)
    requests = _build_requests(ground, journal)
    gatekeeper = _build_gatekeeper(ground, peppers, requests.streams)
    configs = ConfigService(stores.collections, models.control, restored=restored)
    gateway = Gateway(
        node=ground.node,
        provider_names=tuple(settings.provider_kinds),
        catalog=models.catalog,
        router=requests.router,
        control=models.control,
        streams=requests.streams,
        embeddings=requests.embeddings,
        recorder=requests.recorder,
        tracker=models.tracker,
        feed=models.feed,
        sessions=stores.sessions,
        model_states=stores.models,
        provider_states=stores.providers,
        keys=KeyService(stores.keys, peppers, changed=gatekeeper.look),
        gatekeeper=gatekeeper,
        library=models.library,
        configs=configs,
        collections=CollectionService(stores.collections, configs, models.rules),
        hub=hub.service,
        hub_token=hub.tokens,
        metrics=_build_metrics(models, requests, meter),
        downloads=build_downloads(settings, stores, hub, models, place, boot),
        decisions=requests.decisions,
        rules=models.rules,
        rotations=requests.rotations,
        memory=models.memory,
    )
    return gateway, models.providers


def _build_requests(ground: _Ground, journal: FileJournal) -> Requests:
    recorder = _build_recorder(ground, journal)
    router = _build_router(ground, asked=lambda model: rotations.asked(model))
    slots = CallerSlots()
    streams = _build_streams(ground, router, recorder, slots)
    embeddings = _build_embeddings(ground, router, slots)
    decisions = DecisionService(ground.log, ground.stores.decisions, router, node=ground.node)
    handover = _build_handover(ground, router, streams, embeddings)
    rotations = _build_rotations(ground, handover)
    return Requests(recorder, router, streams, embeddings, decisions, rotations)


def _build_gatekeeper(ground: _Ground, peppers: Peppers, streams: StreamService) -> Gatekeeper:
    return Gatekeeper(
        ground.stores.keys,
        peppers,
        ground.tasks,
        end_streams=streams.end_of,
        wrong_keys=WrongKeys(ground.settings.wrong_keys_per_minute),
    )


def _build_recorder(ground: _Ground, journal: FileJournal) -> SessionRecorder:
    openings = FileOpenLog(journal.folder, ground.boot)
    return SessionRecorder(
        ground.stores.sessions, journal, openings, node=ground.node, boot=ground.boot
    )


def _build_router(ground: _Ground, *, asked: Callable[[str], None]) -> ModelRouterService:
    settings, models = ground.settings, ground.models
    return ModelRouterService(
        models.providers,
        models.catalog,
        aliases=models.rules.aliases,
        images=ImagePolicy(settings.max_image_bytes, settings.max_image_pixels),
        rules=VirtualModels(models.rotations, models.rules.virtual),
        asked=asked,
        max_continuations=settings.max_continuations,
        meter=ground.meter,
    )


def _build_streams(
    ground: _Ground, router: ModelRouterService, recorder: SessionRecorder, slots: CallerSlots
) -> StreamService:
    settings = ground.settings
    return StreamService(
        router,
        recorder,
        ground.tasks,
        node=ground.node,
        limits=choose_limits(settings),
        tokens=StreamTokens(secrets.token_bytes(32), lifetime_s=settings.stream_token_s),
        slots=slots,
        meter=ground.meter,
        decisions=ground.log,
        tracer=ground.tracer,
    )


def _build_embeddings(
    ground: _Ground, router: ModelRouterService, slots: CallerSlots
) -> EmbeddingService:
    return EmbeddingService(
        router,
        max_open=ground.settings.max_embeds,
        slots=slots,
        meter=ground.meter,
        decisions=ground.log,
        tracer=ground.tracer,
        node=ground.node,
    )


def _build_handover(
    ground: _Ground,
    router: ModelRouterService,
    streams: StreamService,
    embeddings: EmbeddingService,
) -> Handover:
    models = ground.models
    return Handover(
        models.providers,
        models.catalog,
        router,
        models.control,
        streams,
        embeddings,
        aliases=models.rules.aliases,
        elsewhere=ground.settings.openai,
    )


def _build_rotations(ground: _Ground, handover: Handover) -> ModelRotationService:
    settings, models = ground.settings, ground.models
    return ModelRotationService(
        ground.stores.rotations,
        handover,
        orders=settings.rotations,
        providers=tuple(settings.provider_kinds),
        aliases=models.rules.aliases,
        virtual=models.rules.virtual,
        rules=models.rotations,
        node=ground.node,
        boot=ground.boot,
        max_watchers=settings.max_subscriptions,
        lease_s=min(LEASE_S, settings.lease_s),
        stepped=ground.meter.stepped,
    )


def _build_metrics(models: Models, requests: Requests, meter: Meter) -> MetricsService:
    return MetricsService(
        meter,
        Stalls(),
        providers=models.providers,
        streams=requests.streams,
        embeddings=requests.embeddings,
        feed=models.feed,
        recorder=requests.recorder,
        health=requests.router.health,
        tracker=models.tracker,
        memory=models.memory,
        decisions=requests.decisions.log,
    )
