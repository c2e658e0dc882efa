"""Retention: records older than the operator wants are deleted, batch by batch."""

import logging
import time
from collections.abc import Awaitable, Callable

import anyio

from gateway.core.errors import DatabaseUnavailable
from gateway.core.ports import RecordStore
from gateway.core.sessions import RecordCounts

logger = logging.getLogger(__name__)

INTERVAL_S = 3600.0
DAY_S = 86_400.0


class SessionPurger:
    """Keeps the records of `keep_days` days; 0 keeps all for ever.

    A batch is one short transaction, and between two it rests for as long as one took: whoever
    else writes waits for one batch at most, and has the database for half of the time.
    """

    def __init__(
        self,
        store: RecordStore,
        *,
        keep_days: int,
        batch: int,
        counts: RecordCounts,
        kind: str = "sessions",
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        self._store = store
        self._keep_days = keep_days
        self._batch = batch
        self._counts = counts
        self._kind = kind
        self._now = now
        self._clock = clock
        self._sleep = sleep

    async def run(self) -> None:
        """Purge now and every hour, for ever; end it by cancelling."""
        while self._keep_days:
            try:
                await self.purge()
            except DatabaseUnavailable as error:
                logger.warning("old %s are not purged for now: %s", self._kind, error.message)
            await self._sleep(INTERVAL_S)

    async def purge(self) -> int:
        """Delete all that is too old now; return how many records that were."""
        opened_before = self._now() - self._keep_days * DAY_S
        total, is_more = 0, True
        while is_more:
            begun = self._clock()
            count = await self._store.purge(opened_before, self._batch)
            self._counts.purged += count
            total += count
            is_more = count == self._batch
            if is_more:
                await self._sleep(self._clock() - begun)
        if total:
            logger.info("old %s purged: %d", self._kind, total)
        return total
