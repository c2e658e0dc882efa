"""The opening log on a real disk: what it took the next run finds, and it stays small."""

import asyncio
import errno
import os
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from gateway.core.errors import DatabaseUnavailable
from gateway.core.events import Timings, Usage
from gateway.core.sessions import SessionClosed, SessionOpened, SessionRecord
from gateway.core.states import StreamEnd
from gateway.services.recorder import MAX_BATCH, SessionRecorder
from gateway.store.journal import FileJournal
from gateway.store.open_log import REST_S, SLOW_S, FileOpenLog
from gateway.testing import MemorySessionStore
from tests.integration.disks import fill_up, tiny_disk


def opened(number: int) -> SessionOpened:
    return SessionOpened(f"s{number:06}", "r", "n", "m", 1.5, boot="b")


def closed(number: int) -> SessionClosed:
    return SessionClosed(f"s{number:06}", "p", "m", StreamEnd.STOP, 2.5, Usage(3, 4), Timings())


async def open_log(folder: Path, boot: str = "b", **options: object) -> FileOpenLog:
    log = FileOpenLog(folder, boot, **options)  # type: ignore[arg-type]
    await log.trim(0)
    return log


async def left_in(folder: Path) -> list[SessionRecord]:
    """Return what the journal of a next run finds."""
    journal = FileJournal(folder, max_bytes=2**20)
    await journal.open()
    found: list[SessionRecord] = []
    while journal.backlog:
        found += await journal.read(7)
        await journal.release()
    return found


def logs(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.log"))


async def test_what_it_took_is_found_by_the_next_run_and_then_gone(tmp_path: Path) -> None:
    log = await open_log(tmp_path)
    records = [opened(1), closed(1), opened(2)]
    assert all(log.append([record], ticket) for ticket, record in enumerate(records, 1))
    assert await left_in(tmp_path) == records
    assert logs(tmp_path) == []


async def test_the_segments_of_the_journal_are_read_before_it_and_not_written_over(
    tmp_path: Path,
) -> None:
    journal = FileJournal(tmp_path, max_bytes=2**20)
    await journal.append([opened(1)])
    log = await open_log(tmp_path)
    assert log.append([opened(2)], 1)
    after = FileJournal(tmp_path, max_bytes=2**20)
    await after.open()
    await after.append([opened(3)])
    found = [record.id for record in await left_in(tmp_path)]
    assert sorted(found) == ["s000001", "s000002", "s000003"]
    assert found[0] == "s000001"


async def test_before_it_has_a_file_and_after_its_end_it_takes_nothing(tmp_path: Path) -> None:
    log = FileOpenLog(tmp_path, "b")
    assert not log.append([opened(1)], 1)
    await log.trim(0)
    assert log.append([opened(2)], 2)
    await log.aclose(2)
    assert not log.append([opened(3)], 3)
    assert logs(tmp_path) == []


async def test_at_its_end_it_keeps_what_nobody_else_has(tmp_path: Path) -> None:
    log = await open_log(tmp_path)
    assert log.append([opened(1)], 1)
    assert log.append([opened(2)], 2)
    await log.aclose(1)
    assert opened(2) in await left_in(tmp_path)


async def test_files_go_as_their_records_are_stored(tmp_path: Path) -> None:
    log = await open_log(tmp_path, segment_bytes=1000)
    for ticket in range(1, 1001):
        assert log.append([opened(ticket)], ticket)
        if ticket % 10 == 0:
            await log.trim(ticket - 10)
    assert 1 <= len(logs(tmp_path)) <= 5
    assert {record.id for record in await left_in(tmp_path)} >= {
        opened(ticket).id for ticket in range(991, 1001)
    }


async def test_it_takes_records_while_the_next_file_is_made(tmp_path: Path) -> None:
    log = await open_log(tmp_path, segment_bytes=1000)
    taken: list[bool] = []

    async def trim_for_ever() -> None:
        while True:
            await log.trim(50)
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(trim_for_ever)
        for ticket in range(1, 101):
            taken.append(log.append([opened(ticket)], ticket))
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    assert all(taken)
    assert {record.id for record in await left_in(tmp_path)} >= {
        opened(ticket).id for ticket in range(51, 101)
    }


async def test_a_next_file_that_cannot_be_made_breaks_no_write_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    is_making, is_writing = threading.Event(), threading.Event()

    def refuse(*_: object, **__: object) -> None:
        is_making.set()
        is_writing.wait(5)
        raise OSError(errno.EACCES, "Permission denied")

    def write(file: int, data: bytes) -> int:
        is_writing.set()
        time.sleep(0.05)  # the thread that makes files goes on
        return os.write(file, data)

    log = await open_log(tmp_path, segment_bytes=1, write=write, clock=lambda: now)
    assert log.append([opened(1)], 1)
    is_writing.clear()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(log.trim, 0)
            while not is_making.is_set():
                await anyio.lowlevel.checkpoint()
            assert log.append([opened(2)], 2)
    assert not log.append([opened(3)], 3)  # it rests
    now = REST_S
    await log.trim(0)
    assert log.append([opened(4)], 4)
    assert await left_in(tmp_path) == [opened(1), opened(2), opened(4)]


async def test_a_full_disk_is_left_alone_and_what_was_taken_stays_whole(tmp_path: Path) -> None:
    now = 0.0
    with tiny_disk(tmp_path / "disk") as disk:
        log = await open_log(disk / "journal", clock=lambda: now)
        ballast = fill_up(disk)
        taken = 0
        while log.append([opened(taken + 1)], taken + 1):
            taken += 1
        await log.trim(0)
        assert not log.append([opened(9000)], taken + 2)
        ballast.unlink()
        await log.trim(0)
        assert not log.append([opened(9001)], taken + 3)  # it rests
        now = REST_S
        await log.trim(0)
        assert log.append([opened(9002)], taken + 4)
        found = [record.id for record in await left_in(disk / "journal")]
    assert found == [opened(n).id for n in (*range(1, taken + 1), 9002)]


async def test_a_slow_disk_is_left_alone_for_a_while(tmp_path: Path) -> None:
    now = 0.0

    def write(file: int, data: bytes) -> int:
        nonlocal now
        now += SLOW_S + 0.01
        return os.write(file, data)

    log = await open_log(tmp_path, write=write, clock=lambda: now)
    assert log.append([opened(1)], 1)
    assert not log.append([opened(2)], 2)
    assert await left_in(tmp_path) == [opened(1)]


async def test_a_folder_that_cannot_be_made_costs_nothing_but_the_log(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    log = await open_log(tmp_path / "file")
    assert not log.append([opened(1)], 1)


class FlakyStore(MemorySessionStore):
    """Fails while `down`, waits for `gate`, and counts its transactions."""

    def __init__(self) -> None:
        super().__init__()
        self.down = False
        self.gate = anyio.Event()
        self.gate.set()
        self.writes = 0

    async def write(self, opened: object, closed: object) -> None:
        await self.gate.wait()
        if self.down:
            raise DatabaseUnavailable("away")
        self.writes += 1
        await super().write(opened, closed)  # type: ignore[arg-type]


@asynccontextmanager
async def recorder_on(
    store: MemorySessionStore, folder: Path, boot: str = "b", journal_bytes: int = 2**20
) -> AsyncIterator[SessionRecorder]:
    journal = FileJournal(folder, max_bytes=journal_bytes)
    await journal.open()
    log = FileOpenLog(folder, boot)
    recorder = SessionRecorder(store, journal, log, node="n", boot=boot)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(recorder.run)
        with anyio.fail_after(20):
            assert await recorder.wait_recovered(10)
            yield recorder
        tasks.cancel_scope.cancel()


async def test_a_record_is_durable_at_once_whatever_the_database_does(tmp_path: Path) -> None:
    store = FlakyStore()
    async with recorder_on(store, tmp_path) as recorder:
        store.gate = anyio.Event()
        ticket = recorder.opened(opened(1))
        assert await recorder.wait_written(ticket, timeout_s=0)
        recorder.closed(closed(1))
    # The run ends here without a word to the database, as it does by kill -9.
    store.gate.set()
    async with recorder_on(store, tmp_path, boot="next"):
        session = await store.find(opened(1).id)
    assert session is not None and session.closed == closed(1)
    assert logs(tmp_path) == []


async def test_who_waits_for_a_record_goes_on_once_the_log_has_it(tmp_path: Path) -> None:
    store = FlakyStore()
    async with recorder_on(store, tmp_path, journal_bytes=1) as recorder:
        store.gate = anyio.Event()  # nobody else will ever have it
        ticket = recorder.opened(opened(1))
        assert not recorder.is_written(ticket)
        assert await recorder.wait_written(ticket, timeout_s=60)


async def test_what_began_and_has_no_end_is_interrupted_by_the_next_run(tmp_path: Path) -> None:
    store = FlakyStore()
    async with recorder_on(store, tmp_path) as recorder:
        store.gate = anyio.Event()
        recorder.opened(opened(1))
    store.gate.set()
    async with recorder_on(store, tmp_path, boot="next"):
        session = await store.find(opened(1).id)
    assert session is not None and session.closed is not None
    assert session.closed.end is StreamEnd.INTERRUPTED


async def test_records_gather_and_go_to_the_database_together(tmp_path: Path) -> None:
    store = FlakyStore()
    async with recorder_on(store, tmp_path) as recorder:
        for number in range(50):
            recorder.opened(opened(number))
            await anyio.wait_all_tasks_blocked()
            recorder.closed(closed(number))
        while recorder.pending:
            await anyio.lowlevel.checkpoint()
        assert store.writes < 50
        before = store.writes
        for number in range(MAX_BATCH):
            recorder.opened(opened(1000 + number))
        await anyio.wait_all_tasks_blocked()  # a whole batch waits for no more
        assert store.writes == before + 1


async def test_whoever_flushes_does_not_wait_for_others(tmp_path: Path) -> None:
    store = FlakyStore()
    async with recorder_on(store, tmp_path) as recorder:
        before = store.writes
        recorder.opened(opened(1))
        await anyio.wait_all_tasks_blocked()
        assert store.writes == before
        recorder.opened(opened(2))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(recorder.flush, 5)
            await anyio.wait_all_tasks_blocked()
            assert store.writes == before + 1
    assert await store.find(opened(2).id) is not None


async def test_without_a_log_a_record_waits_for_its_commit_and_no_longer(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    store = FlakyStore()
    async with anyio.create_task_group() as tasks:
        journal = FileJournal(tmp_path / "journal", max_bytes=2**20)
        log = FileOpenLog(tmp_path / "file", "b")
        recorder = SessionRecorder(store, journal, log, node="n", boot="b")
        tasks.start_soon(recorder.run)
        assert await recorder.wait_recovered(5)
        store.gate = anyio.Event()
        ticket = recorder.opened(opened(1))
        assert not await recorder.wait_written(ticket, timeout_s=0)
        await anyio.wait_all_tasks_blocked()
        store.gate.set()
        await anyio.wait_all_tasks_blocked()  # it does not gather: nobody else has the record
        assert await recorder.wait_written(ticket, timeout_s=0)
        tasks.cancel_scope.cancel()


async def test_a_defect_of_the_log_costs_nothing_but_the_log(tmp_path: Path) -> None:
    class BrokenLog(FileOpenLog):
        def append(self, records: Sequence[SessionRecord], ticket: int) -> bool:
            raise ValueError("a defect")

    told: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, what: told.append(str(what["exception"])))
    store = FlakyStore()
    async with anyio.create_task_group() as tasks:
        journal = FileJournal(tmp_path, max_bytes=2**20)
        recorder = SessionRecorder(store, journal, BrokenLog(tmp_path, "b"), node="n", boot="b")
        tasks.start_soon(recorder.run)
        assert await recorder.wait_recovered(5)
        await anyio.wait_all_tasks_blocked()
        assert await recorder.wait_written(recorder.opened(opened(1)), timeout_s=5)
        tasks.cancel_scope.cancel()
    assert told == ["a defect"]


async def test_what_went_to_the_journal_leaves_the_log(tmp_path: Path) -> None:
    store = FlakyStore()
    async with recorder_on(store, tmp_path) as recorder:
        store.down = True
        recorder.opened(opened(1))
        assert await recorder.flush(5)
        assert recorder.counts.spooled == 1
    assert logs(tmp_path) == []
    assert [record.id for record in await left_in(tmp_path)] == [opened(1).id]


@pytest.mark.parametrize("text", ["\ud800", "x" * 100_000, "a\x00b"])
async def test_text_that_no_database_holds_is_taken_cleaned(tmp_path: Path, text: str) -> None:
    log = await open_log(tmp_path)
    assert log.append([SessionOpened("s", "r", "n", text, 1.5)], 1)
    [found] = await left_in(tmp_path)
    assert isinstance(found, SessionOpened) and len(found.requested_model) <= 512
