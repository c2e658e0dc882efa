"""The queue of downloads: takes orders, runs some at once, tells how they go.

What is true of a download is in the database: a transition is one compare-and-set there, and who
runs it holds a lease. Pausing or cancelling one that another gateway runs is the same transition:
it finds out at its next beat.
"""

import logging
import secrets
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Mapping,
    Sequence,
)
from contextlib import aclosing, asynccontextmanager
from functools import partial

import anyio
from anyio.abc import TaskGroup

from gateway.core.downloads import (
    Download,
    DownloadOrder,
    DownloadPlan,
    DownloadState,
    Fetched,
)
from gateway.core.errors import (
    DatabaseUnavailable,
    DownloadNotFound,
    GatewayError,
    InvalidRequest,
    Overloaded,
    ShuttingDown,
    StaleTransition,
)
from gateway.core.ports import (
    DownloadChange,
    DownloadObserver,
    DownloadSource,
    DownloadStore,
    Worker,
)
from gateway.services.download_job import DownloadJob

logger = logging.getLogger(__name__)

LEASE_S = 30.0
BEAT_S = 3.0
"""How often a running download is recorded, and its lease prolonged."""
TICK_S = 0.25
"""How often watchers are told of progress."""
LOOK_S = 2.0
"""How often the queue is looked at for what other gateways did."""
RETURN_S = 2.0
"""How long a stopping gateway may take to give back what it runs."""
MAX_LISTED = 500
MAX_WAITING = 1000
NEWEST = 100
"""How many are looked at for those that began and ended between two looks."""

_ACTIVE = (DownloadState.QUEUED, DownloadState.RUNNING, DownloadState.PAUSED)
_RESUMABLE = (DownloadState.PAUSED, DownloadState.FAILED)

Admit = Callable[[DownloadOrder], Awaitable[None]]
"""Raises when an order may not be carried out: without a token, for one."""


async def repositories_under_way(store: DownloadStore, place: str) -> frozenset[str]:
    """Return the repositories whose files are being fetched to `place`, or are about to be."""
    found = await store.newest(MAX_WAITING, (DownloadState.QUEUED, DownloadState.RUNNING))
    return frozenset(each.order.repo for each in found if each.place == place)


class DownloadService:
    """Runs on one event loop; `run` does the work, everything else may be called meanwhile."""

    def __init__(
        self,
        store: DownloadStore,
        sources: Mapping[str, DownloadSource],
        *,
        node: str,
        boot: str,
        max_running: int,
        max_watchers: int,
        admit: Admit,
        completed: DownloadObserver,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        """`now` is Unix seconds, `clock` monotonic ones; `completed` is told of every success."""
        self._store = store
        self._sources = sources
        self._worker = Worker(node, boot, LEASE_S)
        self._max_running = max_running
        self._max_watchers = max_watchers
        self._admit = admit
        self._completed = completed
        self._now = now
        self._clock = clock
        self._sleep = sleep
        self._jobs: dict[str, DownloadJob] = {}
        self._ordering = anyio.Lock()
        self._watchers = 0
        self._version = 0
        self._work = anyio.Event()
        self._news = anyio.Event()
        self._draining = False

    async def plan(self, order: DownloadOrder) -> DownloadPlan:
        """Return what `start` would do, without doing it."""
        await self._admit(order)
        return await self._source(order).plan(order)

    async def start(self, order: DownloadOrder) -> Download:
        """Queue a download and return it; one that is ordered already and not ended is that one."""
        if self._draining:
            raise ShuttingDown("The gateway is shutting down.")
        source = self._source(order)
        await self._admit(order)
        async with self._ordering:
            waiting = await self._store.newest(MAX_WAITING, _ACTIVE)
            for known in waiting:
                if (known.order, known.place) == (order, source.place):
                    return self._present(known)
            if len(waiting) >= MAX_WAITING:
                raise Overloaded(f"{MAX_WAITING} downloads are waiting already.")
            at = self._now()
            download = Download(
                secrets.token_hex(8), order, source.place, DownloadState.QUEUED, at, at
            )
            await self._store.add(download)
        self._work.set()
        self._tell()
        return download

    async def find(self, download_id: str) -> Download:
        """Return the download as it is now; raises DownloadNotFound."""
        found = await self._store.find(download_id)
        if found is None:
            raise DownloadNotFound(f"There is no download '{download_id[:64]}'.")
        return self._present(found)

    async def newest(
        self, limit: int = 100, states: Sequence[DownloadState] = ()
    ) -> Sequence[Download]:
        """Return the newest downloads, newest first."""
        if not 0 <= limit <= MAX_LISTED:
            raise InvalidRequest(f"'limit' must be from 0 to {MAX_LISTED}.", param="limit")
        return [self._present(found) for found in await self._store.newest(limit, states)]

    async def pause(self, download_id: str) -> Download:
        """Stop it for now; what was fetched is kept. Returns once it has stopped here."""
        return await self._stop(download_id, DownloadState.PAUSED)

    async def cancel(self, download_id: str) -> Download:
        """Stop it for good and delete what is not whole, if nobody else fetches of it."""
        cancelled = await self._stop(download_id, DownloadState.CANCELLED)
        await self._discard(cancelled)
        return cancelled

    async def forget(self, download_id: str) -> Download:
        """Take one that has ended off the list and return it; what a failed one left is deleted,
        as `cancel` does. Raises StaleTransition for one that has not ended."""
        found = await self.find(download_id)
        if found.state is DownloadState.FAILED:
            found = await self.cancel(download_id)
        if not await self._store.remove(download_id):
            raise StaleTransition(
                f"A download that is {found.state} is not forgotten.", hint="Cancel it first."
            )
        self._tell()
        return found

    async def resume(self, download_id: str) -> Download:
        """Queue one again that is paused or has failed; goes on where it stopped."""
        if self._draining:
            raise ShuttingDown("The gateway is shutting down.")
        await self._admit((await self.find(download_id)).order)
        return await self._move(download_id, DownloadState.QUEUED, sources=_RESUMABLE)

    @asynccontextmanager
    async def watch(
        self, ids: Collection[str] = ()
    ) -> AsyncIterator[AsyncGenerator[Download, None]]:
        """Give the downloads as they are now, then each as it changes: those of the ids until
        all of them have ended, or else all that have not ended or are new.

        Who reads slowly misses what is between: the present matters. Raises Overloaded at once;
        what it gives raises DownloadNotFound, and ShuttingDown when the gateway stops.
        """
        if self._watchers >= self._max_watchers:
            raise Overloaded(f"All {self._max_watchers} subscriptions are taken.")
        self._watchers += 1
        try:
            async with aclosing(self._follow(_View(ids))) as changes:
                yield changes
        finally:
            self._watchers -= 1

    async def _follow(self, view: "_View") -> AsyncGenerator[Download, None]:
        while True:
            for download in await self._look(view):
                yield download
            if view.is_complete:
                return
            if self._draining:
                raise ShuttingDown("The gateway is shutting down.")
            with anyio.move_on_after(LOOK_S):
                await self._news.wait()

    async def run(self) -> None:
        """Carry out what is queued, for ever; end it by cancelling, which gives back what runs."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._tick)
            while True:
                self._work = anyio.Event()
                try:
                    await self._fill(tasks)
                except DatabaseUnavailable as error:
                    logger.warning("downloads wait for the database: %s", error.message)
                except Exception:
                    logger.exception("the queue of downloads cannot be read")
                with anyio.move_on_after(LOOK_S):
                    await self._work.wait()

    async def drain(self) -> None:
        """Take no more orders and give back what runs here, for the next start to go on with."""
        self._draining = True
        self._tell()
        for job in list(self._jobs.values()):
            job.stop()
        with anyio.move_on_after(RETURN_S):
            for job in list(self._jobs.values()):
                await job.stopped.wait()

    async def _fill(self, tasks: TaskGroup) -> None:
        places = [source.place for source in self._sources.values()]
        while not self._draining and len(self._jobs) < self._max_running:
            claimed = await self._store.claim(self._worker, places)
            if claimed is None:
                return
            present = self._jobs.get(claimed.id)
            if present is not None and not present.is_stopping:
                continue  # paused and resumed elsewhere, before it was noticed here: it goes on
            if present is not None or self._draining:
                # Nobody would carry it out: it is for the next look, or for another gateway.
                await self._return(claimed.id, present)
                continue
            job = self._jobs[claimed.id] = DownloadJob(claimed, self._clock())
            self._tell()
            tasks.start_soon(self._carry_out, job, name=f"download {claimed.id}")

    async def _return(self, download_id: str, stopping: DownloadJob | None) -> None:
        """Queue again what was claimed, once nobody here is at it any more."""
        if stopping is not None:
            await stopping.stopped.wait()
        await self._store.move(download_id, DownloadChange(DownloadState.QUEUED), self._worker)
        self._work.set()

    async def _carry_out(self, job: DownloadJob) -> None:
        try:
            with job.scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._beat, job)
                    await self._fetch(job)
                    tasks.cancel_scope.cancel()
                await self._end(job)
        except Exception:
            logger.exception("download %s cannot be recorded", job.download.id)
        finally:
            job.is_stopping = True
            # Also when the gateway stops: the next one need not wait for the lease to end.
            with anyio.move_on_after(RETURN_S, shield=True):
                if not job.is_over:
                    await self._give_back(job)
            del self._jobs[job.download.id]
            job.stopped.set()
            self._work.set()
            self._tell()
            self._tell_completed(job)

    async def _fetch(self, job: DownloadJob) -> None:
        download = job.download
        source = self._source(download.order)
        fetch = partial(source.fetch, download.order, job.tally, since=download.created_at)
        try:
            while not await self._fetched(job, fetch):
                await self._sleep(LOOK_S)
        except GatewayError as error:
            job.error = error
        except Exception as error:
            logger.exception("download %s failed", download.id)
            job.error = error

    async def _fetched(self, job: DownloadJob, fetch: Callable[..., Awaitable[Fetched]]) -> bool:
        """Return whether the files came; not, while the database cannot say with which token."""
        try:
            job.fetched = await fetch(commit=job.commit)
        except DatabaseUnavailable as error:
            logger.warning("download %s waits: %s", job.download.id, error.message)
        return job.fetched is not None

    async def _beat(self, job: DownloadJob) -> None:
        """Record progress again and again; ends the job when somebody else decided of it."""
        while True:
            await self._sleep(BEAT_S)
            try:
                kept = await self._store.keep(
                    job.download.id, self._worker, job.read(self._clock()), job.commit
                )
            except DatabaseUnavailable as error:
                logger.warning("download %s goes unrecorded: %s", job.download.id, error.message)
                continue
            if not kept:
                job.stop()

    async def _end(self, job: DownloadJob) -> None:
        """Record how it came out, waiting for the database if that is away."""
        change = job.outcome(self._clock())
        while change is not None:
            try:
                moved = await self._store.move(job.download.id, change, self._worker)
            except DatabaseUnavailable:
                await self._sleep(LOOK_S)
                continue
            job.is_over = True
            if moved is not None:
                job.present = moved
                logger.info("download %s of %s: %s", moved.id, moved.order.name, moved.state)
            return

    def _tell_completed(self, job: DownloadJob) -> None:
        if job.present.state not in (DownloadState.SUCCEEDED, DownloadState.SKIPPED):
            return
        try:
            self._completed(job.present)
        except Exception:
            logger.exception("nobody could be told of download %s", job.download.id)

    async def _give_back(self, job: DownloadJob) -> None:
        """Queue it again, unless somebody decided otherwise meanwhile."""
        progress = job.read(self._clock())
        change = DownloadChange(DownloadState.QUEUED, progress=progress, commit=job.commit)
        try:
            if await self._store.move(job.download.id, change, self._worker) is None:
                await self._discard(await self.find(job.download.id))
        except Exception as error:
            logger.warning("download %s is not given back: %s", job.download.id, error)

    async def _stop(self, download_id: str, state: DownloadState) -> Download:
        stopped = await self._move(download_id, state)
        job = self._jobs.get(download_id)
        if job is not None:
            job.stop()
            await job.stopped.wait()
        return stopped

    async def _move(
        self, download_id: str, state: DownloadState, *, sources: Sequence[DownloadState] = ()
    ) -> Download:
        present = await self.find(download_id)
        change = DownloadChange(state, progress=present.progress, commit=present.commit)
        moved = await self._store.move(download_id, change, sources=sources)
        if moved is None:
            raise StaleTransition(f"A download that is {present.state} cannot become {state}.")
        self._work.set()
        self._tell()
        return moved

    async def _discard(self, download: Download) -> None:
        """Delete what a cancelled download left, if this gateway can and no other needs it."""
        source = self._sources.get(download.order.source)
        is_cancelled = download.state is DownloadState.CANCELLED
        if source is None or not is_cancelled or source.place != download.place:
            return
        async with self._ordering:  # nobody orders it anew meanwhile
            others = await self._store.newest(MAX_WAITING, (*_ACTIVE, DownloadState.FAILED))
            if any(other.order.repo == download.order.repo for other in others):
                return
            try:
                await source.discard(download.order)
            except GatewayError as error:
                logger.warning("download %s leaves files: %s", download.id, error.message)

    async def _look(self, view: "_View") -> list[Download]:
        """Return what is new to the view. The database is asked only when it may know more."""
        now = self._clock()
        if view.version != self._version or now - view.looked_at >= LOOK_S:
            view.version, view.looked_at = self._version, now
            if view.ids:
                return view.take([await self.find(each) for each in view.ids])
            return view.take(await self._find_all(view.open_ids))
        return view.renew([job.present for job in self._jobs.values()])

    async def _find_all(self, known: Collection[str]) -> list[Download]:
        """Return all that have not ended, what became of the `known` ones, and the newest."""
        active = await self._store.newest(MAX_WAITING, _ACTIVE)
        found = {each.id: each for each in (*await self._store.newest(NEWEST), *active)}
        for download_id in set(known).difference(found):
            gone = await self._store.find(download_id)
            if gone is not None:
                found[gone.id] = gone
        return [self._present(each) for each in found.values()]

    async def _tick(self) -> None:
        while True:
            await self._sleep(TICK_S)
            for job in self._jobs.values():
                job.read(self._clock())
            if self._jobs:
                self._tell(is_transition=False)

    def _tell(self, *, is_transition: bool = True) -> None:
        self._version += is_transition
        self._news.set()
        self._news = anyio.Event()

    def _source(self, order: DownloadOrder) -> DownloadSource:
        if order.source not in self._sources:
            raise InvalidRequest(f"This gateway downloads nothing from '{order.source}'.")
        return self._sources[order.source]

    def _present(self, stored: Download) -> Download:
        """Return a download with the progress of this moment, if it runs here."""
        job = self._jobs.get(stored.id)
        if job is None or stored.state is not DownloadState.RUNNING:
            return stored
        job.read(self._clock())
        return job.present


class _View:
    """What one watcher knows; without ids he wants all."""

    def __init__(self, ids: Collection[str]) -> None:
        self.ids = tuple(ids)
        self.version = -1
        self.looked_at = -LOOK_S
        self._known: dict[str, Download] = {}
        self._newest_at: float | None = None

    @property
    def is_complete(self) -> bool:
        return bool(self.ids) and all(self._known[each].ended for each in self.ids)

    @property
    def open_ids(self) -> list[str]:
        """What was told, and not yet how it ended."""
        return [each.id for each in self._known.values() if not each.ended]

    def take(self, found: Sequence[Download]) -> list[Download]:
        """Return what of a whole look is to be told, and know it from now on."""
        told = [each for each in found if self._known.get(each.id) != each and self._wants(each)]
        if self._newest_at is None:
            self._newest_at = max((each.created_at for each in found), default=0.0)
        self._known = {each.id: each for each in found}
        return told

    def renew(self, found: Sequence[Download]) -> list[Download]:
        """Return what is to be told of a few that run here."""
        wanted = [each for each in found if not self.ids or each.id in self.ids]
        told = [each for each in wanted if self._known.get(each.id) != each]
        self._known |= {each.id: each for each in told}
        return told

    def _wants(self, download: Download) -> bool:
        """Tell whether it is no end of before the watching began."""
        if self.ids or not download.ended or download.id in self._known:
            return True
        return self._newest_at is not None and download.created_at > self._newest_at
