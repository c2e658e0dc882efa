"""Builds the gateway from its settings, serves it and takes it down. The one who knows all."""

import gc
import logging
import secrets
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import NamedTuple

import anyio
import anyio.to_thread
import uvicorn
from anyio.abc import TaskGroup
from starlette.types import ASGIApp

from gateway import demo, providers
from gateway.core.downloads import Download, DownloadOrder
from gateway.core.keys import Peppers
from gateway.core.loading import LoadConfig
from gateway.core.models import LocalModel, ModelStateChange
from gateway.core.ports import DownloadSource, HubRevisions, ModelObserver, ModelRemover, Provider
from gateway.core.states import ModelState
from gateway.engine.loader import choose_device
from gateway.engine.runtime import default_budget
from gateway.http import app as http
from gateway.http.connections import (
    ConnectionGuard,
    ConnectionLimits,
    guarded_protocol,
    most_connections,
    raise_file_limit,
)
from gateway.http.hosts import is_loopback
from gateway.http.server import DrainingServer, listen
from gateway.http.stream import read_stream_values
from gateway.hub.cache import FileLibrary
from gateway.hub.client import HubClient
from gateway.hub.download import HubDownloads
from gateway.hub.health import Health
from gateway.hub.library import DiskShelf
from gateway.hub.search import HubSearch
from gateway.hub.token import ask_whoami
from gateway.hub.trial import ChildLoadTester
from gateway.providers.ollama_pull_wire import OllamaPulls
from gateway.services.catalog import Catalog
from gateway.services.collections import CollectionService
from gateway.services.configs import ConfigService
from gateway.services.control import ModelControlService
from gateway.services.downloads import DownloadService
from gateway.services.embeddings import EmbeddingService
from gateway.services.feed import ModelFeed
from gateway.services.gatekeeper import Gatekeeper
from gateway.services.gateway import Gateway
from gateway.services.hub import HubService
from gateway.services.hub_token import HubTokenService
from gateway.services.images import ImagePolicy
from gateway.services.keys import KeyService
from gateway.services.lease import BootLease
from gateway.services.library import LibraryService
from gateway.services.metrics import MetricsService
from gateway.services.recorder import SessionRecorder
from gateway.services.retention import SessionPurger
from gateway.services.router import ModelRouterService
from gateway.services.slots import CallerSlots
from gateway.services.stream_tokens import StreamTokens
from gateway.services.streams import StreamService, choose_limits
from gateway.services.tracker import ModelStateTracker
from gateway.services.usage_notes import UsageNotes
from gateway.services.wrong_keys import WrongKeys
from gateway.settings import Settings, child_environment
from gateway.store import migrate
from gateway.store.claim import claimed, file_name
from gateway.store.collections import DatabaseCollectionStore
from gateway.store.database import Database
from gateway.store.downloads import DatabaseDownloadStore
from gateway.store.hub_cache import DatabaseHubCache
from gateway.store.journal import FileJournal
from gateway.store.keys import DatabaseKeyStore
from gateway.store.library import DatabaseFileStore
from gateway.store.models import DatabaseModelStateStore
from gateway.store.pepper import load_peppers
from gateway.store.providers import DatabaseProviderStore
from gateway.store.secrets import DatabaseSecretStore
from gateway.store.sessions import DatabaseSessionStore
from gateway.store.vault import load_vault
from gateway.telemetry import configure_logging
from gateway.telemetry.meter import Meter
from gateway.telemetry.watchdog import LoopWatchdog, Stalls
from schema import create_graphql
from schema.body import MAX_BODY_BYTES

logger = logging.getLogger(__name__)

FLUSH_S = 5.0
"""How long a stopping gateway waits for its last records to be safe."""
RECOVERY_S = 1.0
"""How long a starting one waits until what it left open when it died is told; then it serves."""
COLLECT_AFTER = 10_000
"""How many more objects there are than before when the collector looks among them for cycles."""
CLOSE_S = 2
"""How long it waits for clients to read their terminal events."""


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Gateway]:
    """Give a gateway that serves requests; at the exit its streams are drained and all is closed.

    Raises WrongRevision or DatabaseUnavailable before anything is started.
    """
    url = settings.resolved_database_url
    await anyio.to_thread.run_sync(migrate.require_head, url)
    peppers = await anyio.to_thread.run_sync(
        load_peppers, settings.key_pepper.get_secret_value(), settings.resolved_pepper_file
    )
    async with Database(url) as database:
        sessions = DatabaseSessionStore(database)
        journal = await _open_journal(settings)
        async with anyio.create_task_group() as tasks:
            hub = await open_hub(settings, database)
            boot = secrets.token_hex(8)
            lease = BootLease(
                sessions, node=settings.resolved_node, boot=boot, lease_s=settings.lease_s
            )
            gateway, built = _assemble(
                settings, database, sessions, journal, peppers, hub, boot, tasks
            )
            await gateway.gatekeeper.look()
            await gateway.configs.restore()
            tasks.start_soon(gateway.recorder.run, name="session recorder")
            tasks.start_soon(gateway.tracker.run, name="model state tracker")
            tasks.start_soon(gateway.gatekeeper.run, name="gatekeeper")
            tasks.start_soon(lease.run, name="boot lease")
            notes = UsageNotes(sessions, gateway.streams.used)
            tasks.start_soon(notes.run, name="usage notes")
            tasks.start_soon(gateway.library.run, name="library")
            tasks.start_soon(gateway.downloads.run, name="downloads")
            tasks.start_soon(_build_purger(settings, gateway).run, name="session purger")
            if settings.stall_warn_s:
                watchdog = LoopWatchdog(gateway.metrics.stalls, warn_s=settings.stall_warn_s)
                tasks.start_soon(watchdog.run, name="loop watchdog")
            if not await gateway.recorder.wait_recovered(RECOVERY_S):
                logger.warning("records of an earlier run are still being written")
            try:
                yield gateway
            finally:
                with anyio.CancelScope(shield=True):
                    was_drained = gateway.streams.draining
                    await gateway.drain(0 if was_drained else settings.drain_grace_s)
                    if not await gateway.recorder.flush(FLUSH_S):
                        logger.error("records are lost: %d", gateway.recorder.pending)
                    for provider in built.values():
                        await provider.aclose()
                    await hub.client.aclose()
                    await gateway.tracker.write_last()
                    await gateway.library.write_last()
                tasks.cancel_scope.cancel()


async def _open_journal(settings: Settings) -> FileJournal:
    folder = settings.resolved_journal_dir / file_name(settings.resolved_node)
    journal = FileJournal(folder, max_bytes=settings.journal_max_bytes)
    try:
        await journal.open()
    except OSError as error:
        # Serving goes before records; what is there waits for a start that can read it.
        logger.error("the journal in %s cannot be read: %s", folder, error.strerror)
    if journal.backlog:
        logger.warning("the journal holds %d bytes of an earlier run", journal.size_bytes)
    return journal


def _build_purger(settings: Settings, gateway: Gateway) -> SessionPurger:
    return SessionPurger(
        gateway.sessions,
        keep_days=settings.records_keep_days,
        batch=settings.records_purge_batch,
        counts=gateway.recorder.counts,
    )


def _assemble(
    settings: Settings,
    database: Database,
    sessions: DatabaseSessionStore,
    journal: FileJournal,
    peppers: Peppers,
    hub: "Hub",
    boot: str,
    tasks: TaskGroup,
) -> tuple[Gateway, Mapping[str, Provider]]:
    node = settings.resolved_node
    model_states, provider_states = (
        DatabaseModelStateStore(database),
        DatabaseProviderStore(database),
    )
    built: dict[str, Provider] = {}
    catalog = Catalog(built, timeout_s=settings.catalog_timeout_s, ttl_s=settings.catalog_ttl_s)
    feed = ModelFeed(max_subscribers=settings.max_subscriptions)
    tracker = ModelStateTracker(
        catalog,
        model_states,
        provider_states,
        feed,
        provider_names=tuple(settings.provider_kinds),
        node=node,
        interval_s=settings.reconcile_interval_s,
        kinds=settings.provider_kinds,
    )
    meter = Meter()

    def observe(change: ModelStateChange) -> None:
        if change.state is ModelState.LOADING and not meter.transitions:
            gc.freeze()  # torch is here by now, and nothing of a model yet
        meter.model_changed(change)
        tracker.observe(change)

    control = ModelControlService(
        built, catalog, tasks, aliases=settings.aliases, look_again=tracker.look_again
    )
    removers: dict[str, ModelRemover] = {}
    files, library = _build_library(settings, database, catalog, control, removers, hub.service)
    # Those above hold the mappings; they are filled now that there is somebody to observe the
    # models.
    built |= _build_providers(settings, files, observe, library.note_used, tasks)
    removers |= {name: each for name, each in built.items() if isinstance(each, ModelRemover)}
    recorder = SessionRecorder(sessions, journal, node=node, boot=boot)
    router = ModelRouterService(
        built,
        catalog,
        aliases=settings.aliases,
        images=ImagePolicy(settings.max_image_bytes, settings.max_image_pixels),
        rules=settings.virtual_models,
    )
    tasks.start_soon(router.health.watch, name="look at providers that are away")
    slots = CallerSlots()
    streams = StreamService(
        router,
        recorder,
        tasks,
        node=node,
        limits=choose_limits(settings),
        tokens=StreamTokens(secrets.token_bytes(32), lifetime_s=settings.stream_token_s),
        slots=slots,
        meter=meter,
    )
    embeddings = EmbeddingService(router, max_open=settings.max_embeds, slots=slots, meter=meter)
    key_store = DatabaseKeyStore(database)
    gatekeeper = Gatekeeper(
        key_store,
        peppers,
        tasks,
        end_streams=streams.end_of,
        wrong_keys=WrongKeys(settings.wrong_keys_per_minute),
    )
    collection_store = DatabaseCollectionStore(database)
    configs = ConfigService(collection_store, control)
    gateway = Gateway(
        node=node,
        provider_names=tuple(settings.provider_kinds),
        catalog=catalog,
        router=router,
        control=control,
        streams=streams,
        embeddings=embeddings,
        recorder=recorder,
        tracker=tracker,
        feed=feed,
        sessions=sessions,
        model_states=model_states,
        provider_states=provider_states,
        keys=KeyService(key_store, peppers, changed=gatekeeper.look),
        gatekeeper=gatekeeper,
        library=library,
        configs=configs,
        collections=CollectionService(collection_store, configs),
        hub=hub.service,
        hub_token=hub.tokens,
        metrics=MetricsService(
            meter,
            Stalls(),
            providers=built,
            streams=streams,
            embeddings=embeddings,
            feed=feed,
            recorder=recorder,
        ),
        downloads=_build_downloads(settings, database, hub, tracker, library, boot),
    )
    return gateway, built


class Hub(NamedTuple):
    """What talks to the Hub: the client is whoever opened it to close."""

    client: HubClient
    service: HubService
    tokens: HubTokenService


async def open_hub(settings: Settings, database: Database) -> Hub:
    """Build what talks to the Hub. Raises Misconfigured, DatabaseUnavailable."""
    vault = await anyio.to_thread.run_sync(
        load_vault, settings.secret_key.get_secret_value(), settings.resolved_secret_key_file
    )
    store = DatabaseSecretStore(database, vault)
    if moved := await store.rotate():
        logger.info("%d stored secrets are locked with the newest key now", moved)

    async def token() -> str | None:
        return await tokens.lookup()

    client = HubClient(
        settings.hub_endpoint,
        token,
        offline=settings.hf_hub_offline,
        timeout_s=settings.hub_timeout_s,
    )
    service = HubService(
        HubSearch(client, LoadConfig(settings.hf_device, settings.hf_dtype)),
        DatabaseHubCache(database),
        endpoint=settings.hub_endpoint,
        budget_bytes=partial(_budget_bytes, settings),
        fresh_s=settings.hub_cache_s,
        recommended=settings.hub_recommended,
    )
    tokens = HubTokenService(
        store,
        partial(ask_whoami, client),
        environment=settings.hf_token.get_secret_value() if settings.hf_token else None,
        changed=service.forget,
        required=settings.hub_require_token_for_downloads,
        recommended=settings.hub_recommended,
    )
    return Hub(client, service, tokens)


async def _budget_bytes(settings: Settings) -> int | None:
    """Return what models may take on the default device; None where the gateway runs none."""
    if "huggingface" not in settings.providers:
        return None
    if settings.hf_memory_budget_bytes:
        return settings.hf_memory_budget_bytes
    device = await anyio.to_thread.run_sync(choose_device, settings.hf_device)
    return await anyio.to_thread.run_sync(default_budget, device)


def _build_downloads(
    settings: Settings,
    database: Database,
    hub: Hub,
    tracker: ModelStateTracker,
    library: LibraryService,
    boot: str,
) -> DownloadService:
    cache = settings.resolved_hub_cache
    sources: dict[str, DownloadSource] = {
        "huggingface": HubDownloads(
            hub.client,
            cache,
            place=f"{socket.gethostname()}:{cache.resolve()}",
            reserve_bytes=settings.download_reserve_bytes,
            connections=settings.download_connections,
        )
    }
    if "ollama" in settings.providers:
        sources["ollama"] = OllamaPulls(
            settings.ollama_host, connect_s=settings.ollama_connect_timeout_s
        )

    async def admit(order: DownloadOrder) -> None:
        """Raise HubTokenRequired where the operator wants a token for this."""
        if order.source == "huggingface":
            await hub.tokens.require_for_download(order.repo)

    async def completed(_download: Download) -> None:
        tracker.look_again()
        await library.look()  # verifies the headers of what is new

    return DownloadService(
        DatabaseDownloadStore(database),
        sources,
        node=settings.resolved_node,
        boot=boot,
        max_running=settings.downloads_at_once,
        max_watchers=settings.max_subscriptions,
        admit=admit,
        completed=completed,
    )


def _build_library(
    settings: Settings,
    database: Database,
    catalog: Catalog,
    control: ModelControlService,
    removers: Mapping[str, ModelRemover],
    revisions: HubRevisions,
) -> tuple[FileLibrary, LibraryService]:
    models_folder, hub_cache = settings.resolved_model_path, settings.resolved_hub_cache
    health = Health()
    files = FileLibrary(models_folder, hub_cache, {"demo": demo.MODEL_PATH}, health=health)
    service = LibraryService(
        DiskShelf(files, health, models_folder, hub_cache),
        DatabaseFileStore(database),
        catalog,
        control,
        node=settings.resolved_node,
        test_load=ChildLoadTester(
            environment=child_environment(),
            memory_bytes=settings.hf_verify_memory_bytes,
            timeout_s=settings.hf_verify_timeout_s,
            threads=settings.hf_threads,
        ),
        removers=removers,
        revisions=revisions,
    )
    return files, service


def _build_providers(
    settings: Settings,
    files: FileLibrary,
    observe: ModelObserver,
    used: Callable[[LocalModel], None],
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
            ),
        )
        for name, kind in settings.provider_kinds.items()
    }


def create_app(settings: Settings, gateway: Gateway) -> ASGIApp:
    """Return the whole ASGI application: every face over one gateway."""
    graphql = create_graphql(gateway, settings, read_stream_values)
    return http.create_app(gateway, settings, graphql)


def serve(settings: Settings) -> None:
    """Serve until a signal says stop; returns when everything is closed.

    Raises Misconfigured, WrongRevision, DatabaseUnavailable before it serves anything. The
    settings must have passed `preflight.find_mistakes`.
    """
    configure_logging(settings.log_level, settings.log_format)
    raise_file_limit()
    if settings.hf_model_path and not settings.hf_model_path.is_dir():
        logger.warning("the models folder %s is not there (yet)", settings.hf_model_path)
    # First of all, so that a second gateway by mistake disturbs nothing of the first.
    with (
        listen(settings.host, settings.port) as listener,
        claimed(settings.resolved_node, settings.data_dir),
    ):
        anyio.run(_serve, settings, listener, backend_options={"use_uvloop": True})


async def _serve(settings: Settings, listener: socket.socket) -> None:
    async with running(settings) as gateway:
        # What is here now stays. Looking through it for garbage again and again would hold up the
        # event loop: for 0.1 s with torch imported.
        gc.freeze()
        if not gateway.gatekeeper.needs_keys:
            _say_who_may(settings.host)
        limits = ConnectionLimits(
            most_connections(),
            most_of_peer=settings.max_peer_connections,
            head_s=settings.head_timeout_s,
        )
        config = uvicorn.Config(
            create_app(settings, gateway),
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            forwarded_allow_ips=list(settings.trusted_proxies),
            ws="websockets-sansio",
            ws_max_size=MAX_BODY_BYTES,
            ws_per_message_deflate=False,
            timeout_graceful_shutdown=CLOSE_S,
            http=guarded_protocol(ConnectionGuard(limits)),
        )
        server = DrainingServer(
            config,
            drain=gateway.drain,
            grace_s=settings.drain_grace_s,
            started=partial(_say_hello, needs_key=gateway.gatekeeper.needs_keys),
        )
        _spare_the_collector()
        await server.serve([listener])


def _spare_the_collector() -> None:
    """Have the garbage collector look at what requests leave, and not at the gateway itself, which
    stays: by default it does so every few hundred requests, and stops all streams meanwhile."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, 20, 20)


def _say_who_may(host: str) -> None:
    """Say whom a gateway without keys serves."""
    if is_loopback(host):
        logger.info("there are no API keys: this gateway serves its own machine only")
    else:
        logger.warning(
            "there are no API keys: nobody is served at %s until there is one; "
            "make it with `gateway keys create NAME`",
            host,
        )


def _say_hello(url: str, *, needs_key: bool) -> None:
    key = " -H 'authorization: Bearer YOUR-KEY'" if needs_key else ""
    body = (
        '{"model":"huggingface/demo","messages":[{"role":"user","content":"What is a gateway?"}]}'
    )
    sys.stdout.write(
        f"\nThe gateway serves at {url} . Try it:\n\n"
        f"  curl -N {url}/api/v1/stream -H 'content-type: application/json'{key} -d '{body}'\n\n"
    )
    sys.stdout.flush()
