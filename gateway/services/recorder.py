"""Writes the sessions to the database in batches, behind the streams.

The opening log takes a record at once, which makes it durable: so it may wait for others, and
goes to the database with them. What the log does not take is durable once it is committed; while
one batch is, the next one gathers. What the database does not take soon goes to the journal, and
from there to the database once it is back, oldest first.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager

import anyio

from gateway.core.errors import DatabaseUnavailable
from gateway.core.ports import SessionJournal, SessionLog, SessionStore
from gateway.core.sessions import RecordCounts, SessionClosed, SessionOpened, SessionRecord
from gateway.services.bell import Bell

logger = logging.getLogger(__name__)

MAX_BATCH = 2000
"""Records of one transaction."""
GATHER_S = 0.2
"""How long records that are in the log wait for others; a commit costs as much as fifty of them,
and a session that ended meanwhile is one row written once."""
MAX_SPOOL = 8000
"""Records of one append to the journal; as many waiting ones go there even if commits succeed."""
SPOOL_AFTER_S = 0.15
"""How long a record waits for the database alone; less than `started` waits for its record."""
SLOW_S = 1.0
"""A transaction that takes longer means that the database does not answer. So long do records wait
that are in the log."""
RETRY_S = 0.5


class SessionRecorder:
    """The one writer of session records. `run` must be running for anything to be written.

    Memory holds `max_pending` records. Beyond it, which takes a database and a disk that are both
    away, new sessions are not recorded at all, and counted: a session is recorded whole or not.
    """

    def __init__(
        self,
        store: SessionStore,
        journal: SessionJournal,
        log: SessionLog | None = None,
        *,
        node: str,
        boot: str,
        max_pending: int = 20_000,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        self.counts = RecordCounts()
        self._store = store
        self._journal = journal
        self._log = log
        self._node = node
        self.boot = boot
        self._max_pending = max_pending
        self._now = now
        self._clock = clock
        self._sleep = sleep
        self._pending: list[SessionRecord] = []
        self._unlogged: list[SessionRecord] = []
        self._lost: set[str] = set()
        self._work = Bell()
        self._written = Bell()
        self._settled = Bell()
        self._hurry = Bell()
        self._recovered = anyio.Event()
        self._hurried_count = 0
        # Each counts records from the first one on: queued; safe from the death of this process;
        # safe from the loss of this memory, too: in the database or the journal.
        self._added_count = 0
        self._durable_count = 0
        self._settled_count = 0
        self._asked_at: float | None = None
        self._is_away = False
        self.journal_healthy = True

    @property
    def healthy(self) -> bool:
        """Whether the database takes records."""
        is_slow = self._asked_at is not None and self._clock() - self._asked_at > SLOW_S
        return not (self._is_away or is_slow)

    @property
    def pending(self) -> int:
        """Records that are in memory only."""
        return len(self._pending)

    @property
    def journal_bytes(self) -> int:
        return self._journal.size_bytes

    def opened(self, record: SessionOpened) -> int:
        """Queue the record, which is of the run `boot`; return a ticket for `wait_written`."""
        if len(self._pending) >= self._max_pending:
            self._lose(record)
            return self._durable_count
        return self._add(record)

    def closed(self, record: SessionClosed) -> int:
        # Beyond the bound, too: there are no more of them than streams that were let in.
        if record.id in self._lost:
            self._lost.discard(record.id)
            return self._durable_count
        return self._add(record)

    def is_written(self, ticket: int) -> bool:
        """Return whether `wait_written` would return True at once."""
        return self._durable_count >= ticket

    async def wait_written(self, ticket: int, timeout_s: float) -> bool:
        """Return whether all records up to `ticket` were durable within `timeout_s`: in the log or
        the database, or in the journal while that is away."""
        return await _wait(self._written, lambda: self._durable_count >= ticket, timeout_s)

    async def wait_recovered(self, timeout_s: float) -> bool:
        """Return whether, within `timeout_s`, the database had all that an earlier run left."""
        with anyio.move_on_after(timeout_s):
            await self._recovered.wait()
        return self._recovered.is_set()

    async def flush(self, timeout_s: float) -> bool:
        """Have everything queued so far written to the database, or to the journal while that is
        away, without waiting for more; False when time ran out."""
        ticket = self._hurried_count = self._added_count
        self._hurry.ring()
        return await _wait(self._settled, lambda: self._settled_count >= ticket, timeout_s)

    async def run(self) -> None:
        """Write for ever; end it by cancelling."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._store_for_ever, name="session records to the database")
                tasks.start_soon(self._spool_for_ever, name="session records to the journal")
        finally:
            if self._log is not None:
                self._write_log()
                with anyio.CancelScope(shield=True):
                    await self._log.aclose(self._settled_count)

    async def _store_for_ever(self) -> None:
        while True:
            if self._log is not None:
                await self._log.trim(self._settled_count)
            if self._journal.backlog:
                went_well = await self._replay()
            elif not self._recovered.is_set():
                # Not before the journal is replayed: it may tell how those streams ended.
                went_well = await self._interrupt_orphans()
            elif self._pending:
                await self._gather()
                went_well = await self._store_pending()
            else:
                await self._work.wait()
                continue
            if not went_well:
                await self._sleep(RETRY_S)

    async def _gather(self) -> None:
        """Let more records come, as long as all that wait are safe without it."""
        is_hurried = self._settled_count < self._hurried_count
        if self._are_safe and not is_hurried and len(self._pending) < MAX_BATCH:
            await self._hurry.wait(GATHER_S)

    async def _spool_for_ever(self) -> None:
        while True:
            if not self._pending:
                await self._work.wait()
            elif not await self._is_database_coming():
                await self._spool()

    async def _is_database_coming(self) -> bool:
        """Return whether it is worth waiting for the database; waits to find out."""
        if self._journal.backlog or self._is_away or len(self._pending) >= MAX_SPOOL:
            return False
        before = self._settled_count
        with anyio.move_on_after(SLOW_S if self._are_safe else SPOOL_AFTER_S):
            while self._settled_count == before and not self._is_away:
                await self._settled.wait()
        return self._settled_count > before

    async def _spool(self) -> None:
        records = self._pending[:MAX_SPOOL]
        ticket = self._settled_count + len(records)
        try:
            await self._journal.append(records)
        except OSError as error:
            if self.journal_healthy:
                logger.error("the journal takes no session records: %s", error.strerror or error)
            self.journal_healthy = False
            await self._sleep(RETRY_S)
            return
        self.journal_healthy = True
        self.counts.spooled += len(records)
        self._settle(ticket)

    async def _replay(self) -> bool:
        records = await self._journal.read(MAX_BATCH)
        if records and not await self._write(records):
            return False
        self.counts.replayed += len(records)
        await self._journal.release()
        return True

    async def _store_pending(self) -> bool:
        records = self._pending[:MAX_BATCH]
        ticket = self._settled_count + len(records)
        if not await self._write(records):
            return False
        self._settle(ticket)
        return True

    async def _interrupt_orphans(self) -> bool:
        with self._asking():
            count = await self._store.interrupt_orphans(self._node, self._now(), boot=self.boot)
            if count:
                logger.warning("streams interrupted when the gateway last died: %d", count)
            self._recovered.set()
        return not self._is_away

    async def _write(self, records: Sequence[SessionRecord]) -> bool:
        """Return whether the database is done with the records; what it can never take is lost."""
        try:
            return await self._write_at_once(records)
        except Exception:
            # A defect of ours. One record that no database takes must not hold up all others.
            logger.exception("session records were refused: %d", len(records))
        if len(records) == 1:
            self.counts.lost += 1
            return True
        for record in records:
            if not await self._write([record]):
                return False
        return True

    async def _write_at_once(self, records: Sequence[SessionRecord]) -> bool:
        with self._asking():
            await self._store.write(
                [record for record in records if type(record) is SessionOpened],
                [record for record in records if type(record) is SessionClosed],
            )
            self.counts.written += len(records)
        return not self._is_away

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Take note of how the database answers; that it is away is no error here."""
        self._asked_at = self._clock()
        try:
            yield
        except DatabaseUnavailable as error:
            if not self._is_away:
                logger.warning("session records wait: %s", error.message)
                self._is_away = True
                self._settled.ring()
        else:
            self._is_away = False
        finally:
            self._asked_at = None

    def _settle(self, ticket: int) -> None:
        """Forget the records up to `ticket`: others have them. Both writers may say so of one."""
        del self._pending[: max(0, ticket - self._settled_count)]
        self._settled_count = max(ticket, self._settled_count)
        self._durable_count = max(ticket, self._durable_count)
        self.journal_healthy = self.journal_healthy or not self._pending
        self._settled.ring()
        self._written.ring()

    def _add(self, record: SessionRecord) -> int:
        self._pending.append(record)
        self._added_count += 1
        if self._log is None:
            self._hurry.ring()
            self._work.ring()
        else:
            if not self._unlogged:
                asyncio.get_running_loop().call_soon(self._write_log)
            self._unlogged.append(record)
        return self._added_count

    def _write_log(self) -> None:
        """Have the log take the records of a turn in one write: before anything that was sent in
        that turn leaves the process."""
        records, self._unlogged = self._unlogged, []
        if self._log is None or not records:
            return
        self._work.ring()  # first: whatever becomes of the log, the database is to have them
        are_others_durable = self._durable_count >= self._added_count - len(records)
        if self._log.append(records, self._added_count) and are_others_durable:
            self._durable_count = self._added_count
            self._written.ring()
        if len(self._pending) >= MAX_BATCH or not self._are_safe:
            self._hurry.ring()

    @property
    def _are_safe(self) -> bool:
        """Whether all records are durable, or will be at the end of this turn."""
        return self._durable_count + len(self._unlogged) >= self._added_count

    def _lose(self, record: SessionOpened) -> None:
        if not self._lost:
            # Memory is bounded before records are complete; the loss is said, never silent.
            logger.error("sessions are not recorded from %s on: nothing takes them", record.id)
        self._lost.add(record.id)
        self.counts.lost += 1


async def _wait(bell: Bell, is_reached: Callable[[], bool], timeout_s: float) -> bool:
    """Return whether it is so within `timeout_s`; `bell` rings when it may be."""
    until = anyio.current_time() + timeout_s
    while not is_reached():
        if not await bell.wait(until - anyio.current_time()):
            return is_reached()
    return True
