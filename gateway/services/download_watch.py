"""Watching downloads: how they are first, then each change."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Sequence
from contextlib import aclosing, asynccontextmanager

import anyio

from gateway.core.downloads import ACTIVE, Download
from gateway.core.errors import DownloadNotFound, Overloaded, ShuttingDown
from gateway.core.ports import DownloadStore
from gateway.services.download_runs import MAX_WAITING, DownloadRuns

LOOK_S = 2.0
"""How often it is looked for what other gateways did."""
NEWEST = 100
"""How many are looked at for those that began and ended between two looks."""


class DownloadWatch:
    """Tells watchers, at most `max_watchers` at once; lives on the event loop of what runs."""

    def __init__(
        self,
        store: DownloadStore,
        runs: DownloadRuns,
        *,
        max_watchers: int,
        clock: Callable[[], float],
    ) -> None:
        """`clock` is monotonic seconds."""
        self._store = store
        self._runs = runs
        self._max_watchers = max_watchers
        self._clock = clock
        self.watchers = 0

    async def find(self, download_id: str) -> Download:
        """Return the download as it is now; raises DownloadNotFound."""
        found = await self._store.find(download_id)
        if found is None:
            raise DownloadNotFound(f"There is no download '{download_id[:64]}'.")
        return self._runs.renewed(found)

    @asynccontextmanager
    async def watch(
        self, ids: Collection[str] = ()
    ) -> AsyncIterator[AsyncGenerator[Download, None]]:
        """Give the downloads as they are now, then each as it changes: those of the ids until
        all of them have ended, or else all that have not ended or are new.

        Who reads slowly misses what is between: the present matters. Raises Overloaded at once;
        what it gives raises DownloadNotFound, and ShuttingDown when the gateway stops.
        """
        if self.watchers >= self._max_watchers:
            raise Overloaded(f"All {self._max_watchers} subscriptions are taken.")
        self.watchers += 1
        try:
            async with aclosing(self._follow(_View(ids))) as changes:
                yield changes
        finally:
            self.watchers -= 1

    async def _follow(self, view: "_View") -> AsyncGenerator[Download, None]:
        while True:
            for download in await self._look(view):
                yield download
            if view.is_complete:
                return
            if self._runs.draining:
                raise ShuttingDown("The gateway is shutting down.")
            with anyio.move_on_after(LOOK_S):
                await self._runs.changed.wait()

    async def _look(self, view: "_View") -> list[Download]:
        """Return what is new to the view. The database is asked only when it may know more."""
        now = self._clock()
        if view.version != self._runs.version or now - view.looked_at >= LOOK_S:
            view.version, view.looked_at = self._runs.version, now
            if view.ids:
                return view.take([await self.find(each) for each in view.ids])
            return view.take(await self._find_all(view.open_ids))
        return view.renew(self._runs.present())

    async def _find_all(self, known: Collection[str]) -> list[Download]:
        """Return all that have not ended, what became of the `known` ones, and the newest."""
        active = await self._store.newest(MAX_WAITING, ACTIVE)
        found = {each.id: each for each in (*await self._store.newest(NEWEST), *active)}
        for download_id in set(known).difference(found):
            gone = await self._store.find(download_id)
            if gone is not None:
                found[gone.id] = gone
        return [self._runs.renewed(each) for each in found.values()]


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
