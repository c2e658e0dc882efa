"""The real services over given providers, behind a real server on loopback."""

import socket
from collections import ChainMap
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import uvicorn
from anyio.abc import TaskGroup
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp

from gateway.core.keys import Peppers
from gateway.core.ports import Provider, Tracer
from gateway.core.sessions import Session
from gateway.core.virtual import VirtualModel
from gateway.engine.memory.ledger import MemoryLedger
from gateway.http.app import create_app
from gateway.http.connections import ConnectionGuard, ConnectionLimits
from gateway.http.express.way import ExpressWay
from gateway.http.protocol import guarded_protocol
from gateway.http.server import VANISHED_S, listen
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
from tests.integration.http.primed import learning, primed_protocol
from tests.integration.hub_services import hub_services
from tests.integration.rotations import build_rotations
from tests.integration.routing_services import Routing, build_routing
from tests.ledgers import open_memory
from tests.libraries import build_library


class Way:
    """How requests for tokens come in: each by the long way first, or each by the express one."""

    is_express = False


class Served:
    """A gateway that is being served, and a client for it."""

    def __init__(self, url: str, gateway: Gateway, client: httpx.AsyncClient) -> None:
        self.url = url
        self.gateway = gateway
        self.client = client

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    async def last_session(self) -> Session:
        """Return the record of the newest stream once it is closed and written."""
        while self.gateway.streams.live_count:
            await anyio.lowlevel.checkpoint()
        assert await self.gateway.recorder.flush(5)
        [session] = await self.gateway.sessions.recent(1)
        return session


@asynccontextmanager
async def serving(
    *providers: Provider,
    graphql: ASGIApp = PlainTextResponse("graphql"),  # noqa: B008
    wrap: Callable[[ASGIApp], ASGIApp] = lambda app: app,
    patience_s: float = 30.0,
    max_connections: int = 5000,
    vanished_s: float = VANISHED_S,
    retry_sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    tracer: Tracer | None = None,
    ledger: MemoryLedger | None = None,
    **values: Any,
) -> AsyncIterator[Served]:
    """Serve `providers` with `values` as settings; nothing may take longer than `patience_s`."""
    # A listing may take long on a machine that is busy with other things.
    chosen = {"catalog_timeout_s": 20.0} | values
    settings = Settings(providers=tuple(p.name for p in providers), node="test", **chosen)
    with listen("127.0.0.1", 0, vanished_s=vanished_s) as listener, anyio.fail_after(patience_s):
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with anyio.create_task_group() as tasks:
            gateway = build_gateway(settings, tasks, providers, retry_sleep, tracer, ledger)
            await gateway.gatekeeper.load()
            tasks.start_soon(gateway.recorder.run)
            tasks.start_soon(gateway.router.health.watch)
            tasks.start_soon(gateway.decisions.run)
            limits = ConnectionLimits(max_connections, head_s=settings.head_timeout_s)
            express = ExpressWay(gateway, settings)
            protocol = primed_protocol if Way.is_express else guarded_protocol
            learn = learning(express) if Way.is_express else express.learn
            server = uvicorn.Server(
                uvicorn.Config(
                    wrap(create_app(gateway, settings, graphql, learn=learn)),
                    lifespan="off",
                    ws="none",
                    log_config=None,
                    access_log=False,
                    timeout_graceful_shutdown=2,
                    http=protocol(ConnectionGuard(limits), express),
                )
            )
            done = anyio.Event()
            tasks.start_soon(_serve, server, listener, done)
            # verify: no certificates are loaded, which takes longer than most tests.
            async with httpx.AsyncClient(
                base_url=url, timeout=20, trust_env=False, verify=False
            ) as client:
                yield Served(url, gateway, client)
            server.should_exit = True
            await done.wait()
            tasks.cancel_scope.cancel()


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


def build_gateway(
    settings: Settings,
    tasks: TaskGroup,
    providers: tuple[Provider, ...],
    retry_sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    tracer: Tracer | None = None,
    ledger: MemoryLedger | None = None,
) -> Gateway:
    """Return the real services over `providers`, with stores in memory."""
    sessions, models = MemorySessionStore(), MemoryModelStateStore()
    statuses, key_store = MemoryProviderStore(), MemoryKeyStore()
    peppers = Peppers([b"pepper of the tests, 32 characters"])
    ground = _lay_ground(settings, tasks, providers, tracer)
    by_name, catalog, routing = ground.providers, ground.catalog, ground.routing
    recorder = SessionRecorder(sessions, MemoryJournal(), node="test", boot="b")
    router = _build_router(ground, retry_sleep)
    streams = _build_streams(ground, router, recorder)
    embeddings = _build_embeddings(ground, router)
    gatekeeper = _build_gatekeeper(ground, key_store, peppers, streams)
    feed = ModelFeed(max_subscribers=settings.max_subscriptions)
    tracker = _build_tracker(ground, models, statuses, feed)
    control = ModelControlService(
        by_name, catalog, tasks, aliases=routing.rules.aliases, look_again=tracker.look_again
    )
    memory = open_memory(settings.providers, ledger)
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
        node="test",
        provider_names=settings.providers,
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
        **build_library(settings, catalog, control, by_name, "test", routing),
        **hub_services(settings, tasks),
        metrics=metrics,
        downloads=build_downloads({}),
        rules=routing.rules,
        decisions=routing.decisions(sessions, router, "test"),
        rotations=rotations,
        memory=memory,
    )


def _lay_ground(
    settings: Settings,
    tasks: TaskGroup,
    providers: tuple[Provider, ...],
    tracer: Tracer | None,
) -> _Ground:
    by_name = {provider.name: provider for provider in providers}
    catalog = Catalog(by_name, timeout_s=settings.catalog_timeout_s, ttl_s=0)
    rotations: dict[str, VirtualModel] = {}
    routing = build_routing(settings, catalog, tuple(by_name), rotations)
    return _Ground(
        settings, tasks, by_name, catalog, routing, Meter(), CallerSlots(), rotations, tracer
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
        rules=ChainMap(ground.rotations, rules.virtual),
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
        node="test",
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
        node="test",
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
    statuses: MemoryProviderStore,
    feed: ModelFeed,
) -> ModelStateTracker:
    return ModelStateTracker(
        ground.catalog,
        models,
        statuses,
        feed,
        provider_names=ground.settings.providers,
        node="test",
        interval_s=ground.settings.reconcile_interval_s,
    )


async def _serve(server: uvicorn.Server, listener: socket.socket, done: anyio.Event) -> None:
    await server.serve([listener])
    done.set()
