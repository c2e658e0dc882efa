"""The queue of downloads: takes orders, and says how they stand.

What is true of a download is in the database: a transition is one compare-and-set there. What this
gateway runs of it is in `download_runs`, how it is watched in `download_watch`.
"""

import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager

import anyio

from gateway.core.downloads import (
    ACTIVE,
    SETTLED,
    Download,
    DownloadOrder,
    DownloadPlan,
    DownloadState,
    Progress,
)
from gateway.core.errors import InvalidRequest, Overloaded, ShuttingDown, StaleTransition
from gateway.core.ports import (
    DownloadChange,
    DownloadObserver,
    DownloadSource,
    DownloadStore,
    Worker,
)
from gateway.services.download_runs import MAX_WAITING, DownloadRuns
from gateway.services.download_watch import DownloadWatch

LEASE_S = 30.0
MAX_LISTED = 500

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
        self._admit = admit
        self._now = now
        self._runs = DownloadRuns(
            store,
            sources,
            Worker(node, boot, LEASE_S),
            max_running=max_running,
            completed=completed,
            clock=clock,
            sleep=sleep,
        )
        self._watch = DownloadWatch(store, self._runs, max_watchers=max_watchers, clock=clock)

    async def plan(self, order: DownloadOrder) -> DownloadPlan:
        """Return what `start` would do, without doing it."""
        await self._admit(order)
        return await self._runs.source(order).plan(order)

    async def start(self, order: DownloadOrder) -> Download:
        """Queue a download and return it. One that is ordered already and not ended is that one;
        one that has failed goes on, with what its revision leads to now."""
        if self._runs.draining:
            raise ShuttingDown("The gateway is shutting down.")
        source = self._runs.source(order)
        await self._admit(order)
        async with self._runs.ordering:
            waiting = await self._store.newest(MAX_WAITING, ACTIVE)
            if known := _find_same(waiting, order, source.place):
                return self._runs.renewed(known)
            if len(waiting) >= MAX_WAITING:
                raise Overloaded(f"{MAX_WAITING} downloads are waiting already.")
            download = await self._queue_failed(order, source.place)
            if download is None:
                download = await self._queue_new(order, source.place)
        self._runs.look_soon()
        self._runs.tell()
        return download

    async def find(self, download_id: str) -> Download:
        """Return the download as it is now; raises DownloadNotFound."""
        return await self._watch.find(download_id)

    async def newest(
        self, limit: int = 100, states: Sequence[DownloadState] = ()
    ) -> Sequence[Download]:
        """Return the newest downloads, newest first."""
        if not 0 <= limit <= MAX_LISTED:
            raise InvalidRequest(f"'limit' must be from 0 to {MAX_LISTED}.", param="limit")
        return [self._runs.renewed(found) for found in await self._store.newest(limit, states)]

    async def pause(self, download_id: str) -> Download:
        """Stop it for now; what was fetched is kept. Returns once it has stopped here."""
        return await self._stop(download_id, DownloadState.PAUSED)

    async def cancel(self, download_id: str) -> Download:
        """Stop it for good and delete what is not whole, if nobody else fetches of it."""
        cancelled = await self._stop(download_id, DownloadState.CANCELLED)
        await self._runs.discard(cancelled)
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
        self._runs.tell()
        return found

    async def resume(self, download_id: str) -> Download:
        """Queue one again that is paused or has failed; goes on where it stopped. One that waits
        for a gateway of another place is had here instead, from the start."""
        if self._runs.draining:
            raise ShuttingDown("The gateway is shutting down.")
        found = await self.find(download_id)
        await self._admit(found.order)
        place = self._runs.source(found.order).place
        if found.waits_elsewhere(place):
            waiting = (DownloadState.QUEUED,)
            change = DownloadChange(DownloadState.QUEUED, progress=Progress(), place=place)
            return await self._change(found, change, sources=waiting)
        return await self._move(download_id, DownloadState.QUEUED, sources=_RESUMABLE)

    def watch(
        self, ids: Collection[str] = ()
    ) -> AbstractAsyncContextManager[AsyncGenerator[Download, None]]:
        """Give the downloads as they are now, then each as it changes; see DownloadWatch.watch."""
        return self._watch.watch(ids)

    async def run(self) -> None:
        """Carry out what is queued, for ever; end it by cancelling, which gives back what runs."""
        await self._runs.run()

    async def drain(self) -> None:
        """Take no more orders and give back what runs here, for the next start to go on with."""
        await self._runs.drain()

    async def _queue_failed(self, order: DownloadOrder, place: str) -> Download | None:
        """Queue the newest failure of this order again; None where there is no such one."""
        failed = await self._store.newest(MAX_WAITING, (DownloadState.FAILED,))
        known = _find_same(failed, order, place)
        if known is None:
            return None
        change = DownloadChange(DownloadState.QUEUED, looks_up_anew=True)
        return await self._store.move(known.id, change, sources=(DownloadState.FAILED,))

    async def _queue_new(self, order: DownloadOrder, place: str) -> Download:
        at = self._now()
        download = Download(secrets.token_hex(8), order, place, DownloadState.QUEUED, at, at)
        await self._store.add(download)
        return download

    async def _stop(self, download_id: str, state: DownloadState) -> Download:
        stopped = await self._move(download_id, state)
        job = self._runs.jobs.get(download_id)
        if job is not None:
            job.stop()
            await job.stopped.wait()
        return stopped

    async def _move(
        self, download_id: str, state: DownloadState, *, sources: Sequence[DownloadState] = ()
    ) -> Download:
        present = await self.find(download_id)
        change = DownloadChange(state, progress=present.progress, commit=present.commit)
        return await self._change(present, change, sources=sources)

    async def _change(
        self, present: Download, change: DownloadChange, *, sources: Sequence[DownloadState]
    ) -> Download:
        moved = await self._store.move(present.id, change, sources=sources)
        if moved is None:
            raise _describe_refusal(present.state, change.state)
        self._runs.look_soon()
        self._runs.tell()
        return self._runs.renewed(moved)


def _find_same(downloads: Sequence[Download], order: DownloadOrder, place: str) -> Download | None:
    return next((each for each in downloads if (each.order, each.place) == (order, place)), None)


def _describe_refusal(present: DownloadState, wanted: DownloadState) -> StaleTransition:
    if present is wanted:
        return StaleTransition(f"The download is {present} already.", hint="Nothing is to be done.")
    hint = "It has ended: order it anew." if present in SETTLED else None
    return StaleTransition(f"A download that is {present} cannot become {wanted}.", hint=hint)
