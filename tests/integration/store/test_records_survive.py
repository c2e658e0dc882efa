"""The recorder, the journal and a real database that is locked, full, closed or gone."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from sqlalchemy import event, make_url

from gateway.core.events import Timings, Usage
from gateway.core.sessions import RecordCounts, SessionClosed, SessionOpened
from gateway.core.states import StreamEnd
from gateway.services.recorder import SessionRecorder
from gateway.services.retention import DAY_S, SessionPurger
from gateway.store import migrate
from gateway.store.database import Database
from gateway.store.journal import FileJournal
from gateway.store.sessions import DatabaseSessionStore
from gateway.store.tables import stream_sessions
from tests.integration.disks import fill_up, ordinary_user, tiny_disk

NOW = 1_790_000_000.0


class House:
    """The parts of one run of a gateway that keep records."""

    def __init__(self, database: Database, folder: Path, *, boot: str = "now") -> None:
        self.database = database
        self.folder = folder
        self.store = DatabaseSessionStore(database)
        self.journal = FileJournal(folder, max_bytes=2**24, segment_bytes=20_000)
        self.recorder = SessionRecorder(self.store, self.journal, node="n", boot=boot)
        self.names: list[str] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator["House"]:
        await self.journal.open()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.recorder.run)
            with anyio.fail_after(60):
                yield self
            tasks.cancel_scope.cancel()

    async def serve(self, count: int) -> None:
        """Record `count` whole streams; returns when all records are durable."""
        for _ in range(count):
            self._add()
        assert await self.recorder.flush(20)

    async def serve_until_unhealthy(self) -> None:
        """Record streams until the database is known to be away; none may wait for it."""
        while self.recorder.healthy:
            await self.serve(1)

    async def until_stored(self) -> None:
        while self.journal.backlog or self.recorder.pending:
            await anyio.lowlevel.checkpoint()

    async def ends(self) -> dict[str, StreamEnd | None]:
        return {s.opened.id: s.closed and s.closed.end for s in await self.store.recent(10**6)}

    async def assert_all_are_recorded_once(self) -> None:
        assert await self.ends() == dict.fromkeys(self.names, StreamEnd.STOP)

    def _add(self) -> None:
        name = f"{len(self.names):06}"
        self.names.append(name)
        self.recorder.opened(SessionOpened(name, "r", "n", "m", NOW, boot=self.recorder.boot))
        usage = Usage(7, len(self.names))
        self.recorder.closed(
            SessionClosed(name, "p", "m", StreamEnd.STOP, NOW + 1, usage, Timings())
        )


@asynccontextmanager
async def house_of(url: str, folder: Path, **options: Any) -> AsyncIterator[House]:
    async with (
        Database(url, timeout_s=1.0) as database,
        House(database, folder, **options).running() as house,
    ):
        yield house


def file_of(url: str) -> Path:
    name = make_url(url).database
    assert name
    return Path(name)


LOCKER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.readline()
connection.execute("ROLLBACK")
"""


@contextmanager
def locked_by_another_process(file: Path) -> Iterator[None]:
    with subprocess.Popen(
        [sys.executable, "-c", LOCKER, str(file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin and process.stdout
        assert process.stdout.readline() == "locked\n"
        try:
            yield
        finally:
            process.stdin.write("\n")
            process.stdin.flush()
            process.wait()


async def test_a_database_locked_by_another_process_holds_up_no_stream(
    sqlite_url: str, tmp_path: Path
) -> None:
    migrate.upgrade(sqlite_url)
    async with house_of(sqlite_url, tmp_path / "journal") as house:
        await house.serve(3)
        with locked_by_another_process(file_of(sqlite_url)):
            await house.serve_until_unhealthy()
            await house.serve(300)
            assert house.journal.backlog
        await house.until_stored()
        assert house.recorder.healthy
        await house.serve(3)
        await house.assert_all_are_recorded_once()
        assert house.recorder.counts.lost == 0
    assert list((tmp_path / "journal").iterdir()) == []


async def test_a_full_disk_of_the_database_fills_the_journal_until_there_is_room(
    tmp_path: Path,
) -> None:
    with tiny_disk(tmp_path / "disk", "1m") as disk:
        url = f"sqlite:///{disk / 'gateway.db'}"
        migrate.upgrade(url)
        async with house_of(url, tmp_path / "journal") as house:
            await house.serve(3)
            ballast = fill_up(disk)
            await house.serve_until_unhealthy()
            await house.serve(300)
            ballast.unlink()
            await house.until_stored()
            assert house.recorder.healthy
            await house.assert_all_are_recorded_once()


async def test_a_disk_full_for_both_keeps_records_in_memory_until_there_is_room(
    tmp_path: Path,
) -> None:
    with tiny_disk(tmp_path / "disk", "8m") as disk:
        url = f"sqlite:///{disk / 'gateway.db'}"
        migrate.upgrade(url)
        async with house_of(url, disk / "journal") as house:
            await house.serve(3)
            ballast = fill_up(disk)
            for _ in range(3000):
                house._add()
            while house.recorder.healthy or house.recorder.journal_healthy:
                await anyio.lowlevel.checkpoint()
            assert house.recorder.pending > 0
            ballast.unlink()
            await house.until_stored()
            assert (house.recorder.healthy, house.recorder.journal_healthy) == (True, True)
            await house.assert_all_are_recorded_once()
            assert house.recorder.counts.lost == 0


@pytest.fixture
def common_folder() -> Iterator[Path]:
    """A folder that every user can reach; pytest's own are closed."""
    with tempfile.TemporaryDirectory(prefix="gateway-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        for part in ("database", "journal"):
            (folder / part).mkdir()
            (folder / part).chmod(0o777)
        yield folder


async def test_a_database_that_may_only_be_read_loses_nothing(common_folder: Path) -> None:
    file = common_folder / "database" / "gateway.db"
    url = f"sqlite:///{file}"
    migrate.upgrade(url)
    with ordinary_user(file, stat.S_IRWXU, stat.S_IRUSR):
        async with house_of(url, common_folder / "journal", boot="old") as house:
            await house.serve_until_unhealthy()
            await house.serve(10)
            names = house.names
    os.chmod(file, 0o600)
    async with house_of(url, common_folder / "journal") as house:
        assert await house.recorder.wait_recovered(10)
        house.names = names
        await house.assert_all_are_recorded_once()


async def test_a_postgresql_that_is_stopped_and_started_loses_nothing(
    mortal_postgres: Any, tmp_path: Path
) -> None:
    url = mortal_postgres.get_uri()
    migrate.upgrade(url)
    async with house_of(url, tmp_path / "journal") as house:
        await house.serve(3)
        await anyio.to_thread.run_sync(mortal_postgres.stop)
        await house.serve_until_unhealthy()
        await house.serve(300)
        assert house.journal.backlog
        await anyio.to_thread.run_sync(mortal_postgres.start)
        await house.until_stored()
        assert house.recorder.healthy
        await house.assert_all_are_recorded_once()
        assert house.recorder.counts.lost == 0


async def test_a_journal_is_replayed_once_however_often_it_is_read(
    database_url: str, tmp_path: Path
) -> None:
    """A crash between the commit and the removal of a segment: all of it comes again."""
    journal = FileJournal(tmp_path / "first", max_bytes=2**20, segment_bytes=2000)
    for number in range(40):
        name = f"{number:06}"
        end = SessionClosed(name, "p", "m", StreamEnd.STOP, NOW + 1, Usage(7, number), Timings())
        opened = SessionOpened(name, "r", "n", "m", NOW, boot="old")
        await journal.append([opened, end] if number % 4 else [opened])
    shutil.copytree(tmp_path / "first", tmp_path / "again")
    sessions = []
    for folder in ("first", "again"):
        async with house_of(database_url, tmp_path / folder) as house:
            assert await house.recorder.wait_recovered(10)
            assert not house.journal.backlog
            sessions.append(await house.store.recent(100))
    assert sessions[0] == sessions[1]
    assert len(sessions[0]) == 40
    ends = [session.closed and session.closed.end for session in sessions[0]]
    assert ends.count(StreamEnd.INTERRUPTED) == 10
    assert ends.count(StreamEnd.STOP) == 30


async def test_a_gateway_beside_it_keeps_its_streams_and_gets_on_with_its_own(
    database_url: str, tmp_path: Path
) -> None:
    async with Database(database_url) as database:
        store = DatabaseSessionStore(database)
        other = SessionOpened("of another", "r", "other", "m", NOW, boot="then")
        await store.write([other, SessionOpened("died", "r", "n", "m", NOW, boot="then")], [])
        async with House(database, tmp_path).running() as house:
            house.recorder.opened(SessionOpened("new", "r", "n", "m", NOW))
            assert await house.recorder.flush(5)
            assert await house.recorder.wait_recovered(5)
            ends = await house.ends()
    assert ends == {"of another": None, "died": StreamEnd.INTERRUPTED, "new": None}


@pytest.mark.parametrize(
    "count",
    [100_000, pytest.param(1_000_000, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])],
)
async def test_old_records_are_purged_in_small_statements_and_flat_memory(
    database_url: str, count: int
) -> None:
    async with Database(database_url, timeout_s=30) as database:
        await insert_sessions(database, count, at=NOW - 10 * DAY_S)
        store = DatabaseSessionStore(database)
        await store.write([SessionOpened("young", "r", "n", "m", NOW)], [])
        deleted: list[int] = []
        watch_deletes(database, deleted)
        counts = RecordCounts()
        purger = SessionPurger(
            store,
            keep_days=3,
            batch=2000,
            counts=counts,
            now=lambda: NOW,
            sleep=lambda _: anyio.lowlevel.checkpoint(),
        )
        tracemalloc.start()
        try:
            assert await purger.purge() == count
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert [s.opened.id for s in await store.recent(9)] == ["young"]
    assert counts.purged == count
    assert len(deleted) == count // 2000 + 1
    assert max(deleted) == 2000
    assert peak_bytes < 2**20


async def insert_sessions(database: Database, count: int, *, at: float) -> None:
    """Insert closed sessions, one second apart, in one statement for each 10,000."""
    columns = {
        "request_id": "r",
        "node": "n",
        "requested_model": "m",
        "face": "native",
        "end_reason": "stop",
    }
    for start in range(0, count, 10_000):
        rows = [
            columns
            | {"id": f"{number:08}", "opened_at": at + number / 1000, "closed_at": at + number}
            for number in range(start, min(start + 10_000, count))
        ]
        async with database.writing() as connection:
            await connection.execute(stream_sessions.insert(), rows)


def watch_deletes(database: Database, deleted: list[int]) -> None:
    engine = database._engine
    assert engine is not None

    @event.listens_for(engine.sync_engine, "after_cursor_execute")
    def notice(_c: object, cursor: Any, statement: str, *_: object) -> None:
        if statement.startswith("DELETE"):
            deleted.append(cursor.rowcount)
