"""The downloads that this gateway runs: taken from the queue, carried out, given back.

Who runs a download holds a lease, and renews it with each beat. Pausing or cancelling one that
another gateway runs is a transition in the database: it finds out at its next beat.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

import anyio
from anyio.abc import TaskGroup
from msgspec.structs import replace

from gateway.core.downloads import ACTIVE, Download, DownloadOrder, DownloadState, Fetched
from gateway.core.errors import DatabaseUnavailable, GatewayError, InvalidRequest
from gateway.core.ports import (
    DownloadChange,
    DownloadObserver,
    DownloadSource,
    DownloadStore,
    Worker,
)
from gateway.services.download_job import DownloadJob

logger = logging.getLogger(__name__)

BEAT_S = 3.0
"""How often a running download is recorded, and its lease prolonged."""
TICK_S = 0.25
"""How often watchers are told of progress."""
LOOK_S = 2.0
"""How often the queue is looked at for what other gateways did."""
RETURN_S = 2.0
"""How long a stopping gateway may take to give back what it runs."""
MAX_WAITING = 1000
_RESUME = "not of this one: resume it to have it here."
ELSEWHERE = {
    "huggingface": f"It waits for a gateway of the Hub cache it was ordered for, {_RESUME}",
    "ollama": f"It waits for a gateway of the Ollama server it was ordered for, {_RESUME}",
}


class DownloadRuns:
    """Lives on one event loop; `run` does the work, everything else may be called meanwhile.

    `version` rises with each transition, `changed` is set at each news and replaced. Who orders,
    and who deletes what a cancelled one left, holds `ordering`.
    """

    def __init__(
        self,
        store: DownloadStore,
        sources: Mapping[str, DownloadSource],
        worker: Worker,
        *,
        max_running: int,
        completed: DownloadObserver,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        """`clock` is monotonic seconds; `completed` is told of every success."""
        self._store = store
        self._sources = sources
        self._worker = worker
        self._max_running = max_running
        self._completed = completed
        self._clock = clock
        self._sleep = sleep
        self.jobs: dict[str, DownloadJob] = {}
        self.ordering = anyio.Lock()
        self.version = 0
        self.changed = anyio.Event()
        self.draining = False
        self._work = anyio.Event()

    def look_soon(self) -> None:
        """Have `run` look at the queue as soon as it can."""
        self._work.set()

    def present(self) -> list[Download]:
        """Return what runs here, as it was told last."""
        return [job.present for job in self.jobs.values()]

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
        self.draining = True
        self.tell()
        for job in list(self.jobs.values()):
            job.stop()
        with anyio.move_on_after(RETURN_S):
            for job in list(self.jobs.values()):
                await job.stopped.wait()

    async def _fill(self, tasks: TaskGroup) -> None:
        places = [source.place for source in self._sources.values()]
        while not self.draining and len(self.jobs) < self._max_running:
            claimed = await self._store.claim(self._worker, places)
            if claimed is None:
                return
            present = self.jobs.get(claimed.id)
            if present is not None and not present.is_stopping:
                continue  # paused and resumed elsewhere, before it was noticed here: it goes on
            if present is not None or self.draining:
                # Nobody would carry it out: it is for the next look, or for another gateway.
                await self._return(claimed.id, present)
                continue
            job = self.jobs[claimed.id] = DownloadJob(claimed, self._clock())
            self.tell()
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
            del self.jobs[job.download.id]
            job.stopped.set()
            self._work.set()
            self.tell()
            self._tell_completed(job)

    async def _fetch(self, job: DownloadJob) -> None:
        download = job.download
        source = self.source(download.order)
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
                decided = await self._store.find(job.download.id)
                if decided is not None:
                    await self.discard(decided)
        except Exception as error:
            logger.warning("download %s is not given back: %s", job.download.id, error)

    async def discard(self, download: Download) -> None:
        """Delete what a cancelled download left, if this gateway can and no other needs it."""
        source = self._sources.get(download.order.source)
        is_cancelled = download.state is DownloadState.CANCELLED
        if source is None or not is_cancelled or source.place != download.place:
            return
        async with self.ordering:  # nobody orders it anew meanwhile
            others = await self._store.newest(MAX_WAITING, (*ACTIVE, DownloadState.FAILED))
            if any(_share_files(other, download) for other in others):
                return
            try:
                await source.discard(download.order)
            except GatewayError as error:
                logger.warning("download %s leaves files: %s", download.id, error.message)

    async def _tick(self) -> None:
        while True:
            await self._sleep(TICK_S)
            for job in self.jobs.values():
                job.read(self._clock())
            if self.jobs:
                self.tell(is_transition=False)

    def tell(self, *, is_transition: bool = True) -> None:
        """Wake those who watch."""
        self.version += is_transition
        self.changed.set()
        self.changed = anyio.Event()

    def source(self, order: DownloadOrder) -> DownloadSource:
        """Return what carries an order out; raises InvalidRequest."""
        if order.source not in self._sources:
            raise InvalidRequest(f"This gateway downloads nothing from '{order.source}'.")
        return self._sources[order.source]

    def renewed(self, stored: Download) -> Download:
        """Return a download with the progress of this moment, if it runs here; one that this
        gateway cannot run says so."""
        source = self._sources.get(stored.order.source)
        if source is not None and stored.waits_elsewhere(source.place):
            return replace(stored, message=ELSEWHERE[stored.order.source])
        job = self.jobs.get(stored.id)
        if job is None or stored.state is not DownloadState.RUNNING:
            return stored
        job.read(self._clock())
        return job.present


def _share_files(one: Download, other: Download) -> bool:
    return (one.place, one.order.repo) == (other.place, other.order.repo)
