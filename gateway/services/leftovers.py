"""Cleans up what downloads left behind in the Hub's cache, but for what somebody may still want."""

import logging
import time
from collections.abc import Callable, Sequence

import anyio.to_thread
from msgspec.structs import replace

from gateway.core.downloads import ACTIVE, Download, DownloadState
from gateway.core.errors import GatewayError
from gateway.core.leftovers import Leftover, plan_leftovers
from gateway.core.ports import DownloadStore, LeftoverCache

logger = logging.getLogger(__name__)

MOST_LOOKED_AT = 1000
"""The most downloads that are running or waiting, and of the failed ones the newest."""


class Leftovers:
    """Those of one cache, whose downloads go to `place`."""

    def __init__(
        self,
        store: DownloadStore,
        cache: LeftoverCache,
        *,
        place: str,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`now` is Unix seconds."""
        self._store = store
        self._cache = cache
        self._place = place
        self._now = now

    async def clean(self, *, older_s: float, dry_run: bool) -> Sequence[Leftover]:
        """Remove what nobody added to for so long and return what that freed; with `dry_run`, what
        it would.

        What downloads that wait, run or are paused left stays, and what one left that failed since
        then. Failed ones of before are forgotten with their files. Raises DatabaseUnavailable.
        """
        found = await anyio.to_thread.run_sync(self._cache.find)
        downloads = [*await self._of(*ACTIVE), *await self._of(DownloadState.FAILED)]
        plan = plan_leftovers(found, downloads, self._place, self._now() - older_s)
        if dry_run:
            return plan.leftovers
        # Before the files go: a failed one that is resumed now keeps what it left.
        resumed = {d.order.repo for d in plan.forgotten if not await self._store.remove(d.id)}
        going = [each for each in plan.leftovers if each.repository not in resumed]
        return [done for each in going if (done := await self._discard(each)) is not None]

    async def _of(self, *states: DownloadState) -> Sequence[Download]:
        return await self._store.newest(MOST_LOOKED_AT, states)

    async def _discard(self, leftover: Leftover) -> Leftover | None:
        try:
            freed = await anyio.to_thread.run_sync(self._cache.discard, leftover.repository)
        except GatewayError as error:
            logger.warning("what is left of %s stays: %s", leftover.repository, error.message)
            return None
        logger.info("what was left of %s is removed: %d bytes", leftover.repository, freed)
        return replace(leftover, size_bytes=freed)
