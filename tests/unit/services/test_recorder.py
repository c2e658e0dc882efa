import errno
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio
import pytest

from gateway.core.errors import DatabaseUnavailable
from gateway.core.events import Timings, Usage
from gateway.core.sessions import RecordCounts, SessionClosed, SessionOpened, SessionRecord
from gateway.core.states import StreamEnd
from gateway.services.recorder import SessionRecorder
from gateway.testing import MemoryJournal, MemorySessionStore


class FlakyStore(MemorySessionStore):
    """Fails while `down`, waits for `gate`, and counts its transactions."""

    def __init__(self) -> None:
        super().__init__()
        self.down = False
        self.writes = 0
        self.order: list[str] = []
        self.poison = ""
        self.gate = anyio.Event()
        self.gate.set()

    async def write(self, opened: Sequence[SessionOpened], closed: Sequence[SessionClosed]) -> None:
        await self.gate.wait()
        if self.down:
            raise DatabaseUnavailable("locked")
        if any(record.id == self.poison for record in (*opened, *closed)):
            raise ValueError("a defect")
        self.writes += 1
        self.order += [record.id for record in (*opened, *closed)]
        await super().write(opened, closed)

    async def interrupt_orphans(self, node: str, closed_at: float, *, boot: str) -> int:
        if self.down:
            raise DatabaseUnavailable("locked")
        return await super().interrupt_orphans(node, closed_at, boot=boot)


class FlakyJournal(MemoryJournal):
    """Takes nothing while `full`."""

    full = False

    async def append(self, records: Sequence[SessionRecord]) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        await super().append(records)


def opened(name: str, boot: str = "now") -> SessionOpened:
    return SessionOpened(name, "r", "n", "m", opened_at=1.0, boot=boot)


def closed(name: str, end: StreamEnd = StreamEnd.STOP) -> SessionClosed:
    return SessionClosed(name, "p", "m", end, 2.0, Usage(), Timings())


class House:
    """A recorder over a store and a journal that fail at will."""

    def __init__(self, **limits: int) -> None:
        self.store = FlakyStore()
        self.journal = FlakyJournal()
        self.clock = 0.0
        self.recorder = SessionRecorder(
            self.store,
            self.journal,
            node="n",
            boot="now",
            now=lambda: 9.0,
            clock=lambda: self.clock,
            sleep=no_sleep,
            **limits,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.recorder.run)
            with anyio.fail_after(10):
                yield
            tasks.cancel_scope.cancel()

    async def until_stored(self, *names: str) -> None:
        """Wait until the sessions and their ends are in the database."""
        with anyio.fail_after(5):
            for name in names:
                while (found := await self.store.find(name)) is None or found.closed is None:
                    await anyio.lowlevel.checkpoint()


async def no_sleep(_: float) -> None:
    await anyio.lowlevel.checkpoint()


async def test_records_are_written_in_order_and_a_ticket_tells_when() -> None:
    house = House()
    async with house.running():
        ticket = house.recorder.opened(opened("a"))
        assert await house.recorder.wait_written(ticket, 5)
        house.recorder.closed(closed("a"))
        assert await house.recorder.flush(5)
    session = await house.store.find("a")
    assert session is not None and session.closed is not None
    assert house.recorder.counts == RecordCounts(written=2)


async def test_what_gathers_during_a_commit_goes_in_one_transaction() -> None:
    house = House()
    async with house.running():
        assert await house.recorder.wait_recovered(5)
        house.store.gate, house.store.writes = anyio.Event(), 0
        house.recorder.opened(opened("first"))
        await anyio.wait_all_tasks_blocked()
        for n in range(50):
            house.recorder.opened(opened(str(n)))
        house.store.gate.set()
        assert await house.recorder.flush(5)
    assert house.store.writes == 2
    assert house.recorder.counts.spooled == 0


async def test_while_the_database_is_away_records_are_safe_in_the_journal() -> None:
    house = House()
    async with house.running():
        assert await house.recorder.wait_recovered(5)
        house.store.down = True
        ticket = house.recorder.opened(opened("a"))
        assert await house.recorder.wait_written(ticket, 5)
        assert not house.recorder.healthy
        assert [record.id for record in await house.journal.read(9)] == ["a"]
        assert house.recorder.pending == 0
        house.recorder.closed(closed("a"))
        assert await house.recorder.flush(5)
        house.store.down = False
        await house.until_stored("a")
        await anyio.wait_all_tasks_blocked()
        assert house.recorder.healthy
    assert not house.journal.backlog
    assert house.recorder.counts == RecordCounts(written=2, spooled=2, replayed=2)


async def test_a_database_that_only_hangs_holds_nobody_up_and_is_told() -> None:
    house = House()
    async with house.running():
        assert await house.recorder.wait_recovered(5)
        house.store.gate = anyio.Event()
        ticket = house.recorder.opened(opened("a"))
        assert await house.recorder.wait_written(ticket, 5)
        assert house.recorder.healthy  # it may be a moment only
        house.clock = 1.5
        assert not house.recorder.healthy
        house.recorder.closed(closed("a"))
        house.store.gate.set()
        await house.until_stored("a")
        assert house.recorder.healthy


async def test_more_than_the_database_takes_at_once_goes_to_the_journal() -> None:
    house = House()
    async with house.running():
        assert await house.recorder.wait_recovered(5)
        house.store.gate = anyio.Event()
        for number in range(5000):
            house.recorder.opened(opened(f"s{number:04}"))
        while house.recorder.pending > 2000:  # long before a wait for the database would end
            await anyio.lowlevel.checkpoint()
        house.store.gate.set()
        assert await house.recorder.flush(5)
        while house.journal.backlog:
            await anyio.lowlevel.checkpoint()
    assert list(dict.fromkeys(house.store.order)) == [f"s{number:04}" for number in range(5000)]


async def test_the_journal_is_replayed_in_order_before_and_beside_new_records() -> None:
    house = House()
    old = [f"old{number:04}" for number in range(1200)]
    await house.journal.append([opened(name) for name in old])
    async with house.running():
        for number in range(10):
            house.recorder.opened(opened(f"new{number}"))
        assert await house.recorder.flush(5)
        while house.journal.backlog or house.recorder.pending:
            await anyio.lowlevel.checkpoint()
    assert house.store.order == [*old, *[f"new{number}" for number in range(10)]]


async def test_what_an_earlier_run_left_open_is_interrupted_once_its_journal_is_read() -> None:
    house = House()
    await house.store.write([opened("ended", "old"), opened("died", "old")], [])
    await house.journal.append([closed("ended"), opened("unheard", "old")])
    house.recorder.opened(opened("alive"))
    async with house.running():
        assert await house.recorder.wait_recovered(5)
        assert await house.recorder.flush(5)
        ends = {s.opened.id: s.closed and s.closed.end for s in await house.store.recent(9)}
    assert ends == {
        "ended": StreamEnd.STOP,
        "died": StreamEnd.INTERRUPTED,
        "unheard": StreamEnd.INTERRUPTED,
        "alive": None,
    }


async def test_a_start_without_a_database_recovers_when_it_is_back() -> None:
    house = House()
    await house.store.write([opened("died", "old")], [])
    house.store.down = True
    async with house.running():
        assert not await house.recorder.wait_recovered(0.01)
        ticket = house.recorder.opened(opened("alive"))
        assert await house.recorder.wait_written(ticket, 5)
        house.store.down = False
        assert await house.recorder.wait_recovered(5)
        await house.until_stored("died")


async def test_a_disk_that_is_full_too_keeps_records_in_memory_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    house = House()
    house.store.down = house.journal.full = True
    async with house.running():
        ticket = house.recorder.opened(opened("a"))
        assert not await house.recorder.wait_written(ticket, 0.01)
        assert (house.recorder.healthy, house.recorder.journal_healthy) == (False, False)
        assert house.recorder.pending == 1
        house.recorder.closed(closed("a"))
        house.store.down = False
        await house.until_stored("a")
        assert await house.recorder.flush(5)
        assert (house.recorder.healthy, house.recorder.journal_healthy) == (True, True)
    assert caplog.text.count("the journal takes no session records: No space left") == 1


async def test_beyond_memory_whole_sessions_are_lost_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    house = House(max_pending=2)
    house.store.down = house.journal.full = True
    for name in ("kept", "kept too", "lost", "lost too"):
        house.recorder.opened(opened(name))
    for name in ("lost", "kept"):
        house.recorder.closed(closed(name))
    assert house.recorder.counts.lost == 2
    assert caplog.text.count("not recorded") == 1
    house.store.down = False
    async with house.running():
        assert await house.recorder.flush(5)
        house.recorder.closed(closed("lost too"))
        assert await house.recorder.flush(5)
    ends = {s.opened.id: s.closed and s.closed.end for s in await house.store.recent(9)}
    assert ends == {"kept": StreamEnd.STOP, "kept too": None}


async def test_a_record_that_no_database_takes_does_not_stop_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    house = House()
    house.store.poison = "bad"
    async with house.running():
        for name in ("before", "bad", "after"):
            house.recorder.opened(opened(name))
        for name in ("before", "after"):
            house.recorder.closed(closed(name))
        assert await house.recorder.flush(5)
    await house.until_stored("before", "after")
    assert house.recorder.counts.lost == 1
    assert "refused" in caplog.text
