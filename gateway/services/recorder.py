"""Writes the sessions to the database in batches, behind the streams.

While one batch is being committed the next one gathers, so a busy gateway commits rarely and an
idle one at once. A database that does not answer holds nobody up: records wait and are retried.
"""

import logging
from collections import deque
from collections.abc import Awaitable, Callable

import anyio

from gateway.core.errors import DatabaseUnavailable
from gateway.core.ports import SessionStore
from gateway.core.sessions import SessionClosed, SessionOpened

logger = logging.getLogger(__name__)

MAX_BATCH = 500
RETRY_S = 0.5


class SessionRecorder:
    """The one writer of session records. `run` must be running for anything to be written."""

    def __init__(
        self,
        store: SessionStore,
        *,
        max_pending: int = 100_000,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        self._store = store
        self._sleep = sleep
        self._max_pending = max_pending
        self._pending: deque[SessionOpened | SessionClosed] = deque()
        self._work = anyio.Event()
        self._written = anyio.Event()
        self._added_count = 0
        self._written_count = 0
        self.healthy = True

    def opened(self, record: SessionOpened) -> int:
        """Queue the record; return a ticket for `wait_written`."""
        return self._add(record)

    def closed(self, record: SessionClosed) -> int:
        return self._add(record)

    async def wait_written(self, ticket: int, timeout_s: float) -> bool:
        """Return whether all records up to `ticket` were committed within `timeout_s`."""
        with anyio.move_on_after(timeout_s):
            while self._written_count < ticket:
                await self._written.wait()
        return self._written_count >= ticket

    async def flush(self, timeout_s: float) -> bool:
        """Wait until everything queued so far is committed; False when time ran out."""
        return await self.wait_written(self._added_count, timeout_s)

    async def run(self) -> None:
        """Write batches for ever; end it by cancelling."""
        while True:
            if not self._pending:
                self._work = anyio.Event()
                await self._work.wait()
            batch = [self._pending[i] for i in range(min(len(self._pending), MAX_BATCH))]
            if await self._write(batch):
                for _ in batch:
                    self._pending.popleft()
                self._written_count += len(batch)
                self._written.set()
                self._written = anyio.Event()
            else:
                await self._sleep(RETRY_S)

    async def _write(self, batch: list[SessionOpened | SessionClosed]) -> bool:
        try:
            await self._store.write(
                [record for record in batch if isinstance(record, SessionOpened)],
                [record for record in batch if isinstance(record, SessionClosed)],
            )
        except DatabaseUnavailable as error:
            if self.healthy:
                logger.warning("session records wait: %s", error.message)
            self.healthy = False
            return False
        self.healthy = True
        return True

    def _add(self, record: SessionOpened | SessionClosed) -> int:
        if len(self._pending) >= self._max_pending:
            # Memory is bounded before records are complete; the loss is said, never silent.
            logger.error("dropped session record %s: the database is away too long", record.id)
            return self._written_count
        self._pending.append(record)
        self._added_count += 1
        self._work.set()
        return self._added_count
