"""Starts a gateway from its settings, and takes it down."""

import logging
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from gateway.bootstrap.assembly import assemble
from gateway.bootstrap.hub import Hub, open_hub
from gateway.bootstrap.stores import Stores
from gateway.bootstrap.tracing import open_tracer
from gateway.core.errors import GatewayError
from gateway.core.keys import Peppers
from gateway.core.ports import Provider, RecordStore
from gateway.core.sessions import RecordCounts
from gateway.services.gateway import Gateway
from gateway.services.lease import BootLease
from gateway.services.retention import SessionPurger
from gateway.services.usage_notes import UsageNotes
from gateway.settings import Settings
from gateway.store import migrate
from gateway.store.claim import file_name
from gateway.store.database import Database
from gateway.store.journal import FileJournal
from gateway.store.pepper import load_peppers

logger = logging.getLogger(__name__)


FLUSH_S = 5.0
"""How long a stopping gateway waits for its last records to be safe."""
DECISIONS_S = 1.0
"""How long for its last decisions, which no journal takes while the database is away."""
RECOVERY_S = 1.0
"""How long a starting one waits until what it left open when it died is told; then it serves."""


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
    with _plain_errors():
        async with Database(url) as database:
            hub = await open_hub(settings, database)
            async with aclosing(hub.client), anyio.create_task_group() as tasks:
                async with _assembled(settings, Stores.over(database), peppers, hub, tasks) as made:
                    yield made
                tasks.cancel_scope.cancel()


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Raise the one error of ours that a task group wrapped as what it is."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        if isinstance(error, GatewayError):
            raise error from None
        raise


@asynccontextmanager
async def _assembled(
    settings: Settings, stores: Stores, peppers: Peppers, hub: Hub, tasks: TaskGroup
) -> AsyncIterator[Gateway]:
    """Give the gateway while it runs in `tasks`."""
    journal = await _open_journal(settings)
    boot = secrets.token_hex(8)
    async with open_tracer(settings) as tracer:
        gateway, providers = assemble(settings, stores, journal, peppers, hub, boot, tracer, tasks)
        try:
            await gateway.gatekeeper.look()
            await gateway.configs.restore()
            await gateway.rules.look()
            await gateway.rotations.restore()
            _start(settings, gateway, stores, boot, tasks)
            if not await gateway.recorder.wait_recovered(RECOVERY_S):
                logger.warning("records of an earlier run are still being written")
            yield gateway
        finally:
            with anyio.CancelScope(shield=True):
                await _close(settings, gateway, providers)


def _start(
    settings: Settings, gateway: Gateway, stores: Stores, boot: str, tasks: TaskGroup
) -> None:
    """Begin all that goes on by itself for as long as the gateway runs."""
    sessions = gateway.sessions
    tasks.start_soon(gateway.recorder.run, name="session recorder")
    tasks.start_soon(gateway.tracker.run, name="model state tracker")
    tasks.start_soon(gateway.router.health.watch, name="look at providers that are away")
    tasks.start_soon(gateway.gatekeeper.run, name="gatekeeper")
    lease = BootLease(sessions, node=gateway.node, boot=boot, lease_s=settings.lease_s)
    tasks.start_soon(lease.run, name="boot lease")
    notes = UsageNotes(sessions, gateway.streams.used)
    tasks.start_soon(notes.run, name="usage notes")
    tasks.start_soon(gateway.library.run, name="library")
    tasks.start_soon(gateway.downloads.run, name="downloads")
    tasks.start_soon(gateway.decisions.run, name="decisions")
    tasks.start_soon(gateway.rules.run, name="rules")
    tasks.start_soon(gateway.rotations.run, name="rotations")
    purger = _build_purger(settings, sessions, gateway.recorder.counts, "sessions")
    tasks.start_soon(purger.run, name="session purger")
    purger = _build_purger(settings, stores.decisions, RecordCounts(), "decisions")
    tasks.start_soon(purger.run, name="decision purger")
    days = settings.downloads_keep_days
    purger = _build_purger(settings, stores.downloads, RecordCounts(), "downloads", days)
    tasks.start_soon(purger.run, name="download purger")


async def _close(settings: Settings, gateway: Gateway, providers: Mapping[str, Provider]) -> None:
    was_drained = gateway.streams.draining
    await gateway.drain(0 if was_drained else settings.drain_grace_s)
    if not await gateway.recorder.flush(FLUSH_S):
        logger.error("records are lost: %d", gateway.recorder.pending)
    if not await gateway.decisions.flush(DECISIONS_S):
        logger.error("decisions are lost: %d", gateway.decisions.log.pending_count)
    last = [each.aclose for each in providers.values()]
    for finish in (*last, gateway.tracker.write_last, gateway.library.write_last):
        try:
            await finish()
        except Exception:  # the others have something to lose, too
            logger.exception("something could not be closed well")


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


def _build_purger(
    settings: Settings,
    store: RecordStore,
    counts: RecordCounts,
    kind: str,
    keep_days: int | None = None,
) -> SessionPurger:
    """`keep_days` None: as long as the records of streams."""
    return SessionPurger(
        store,
        keep_days=settings.records_keep_days if keep_days is None else keep_days,
        batch=settings.records_purge_batch,
        counts=counts,
        kind=kind,
    )
