"""What a database that is locked, full, unreadable or gone becomes, and what a cancel leaves."""

import asyncio
import logging
import sqlite3
import stat
import tempfile
import threading
import traceback
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import anyio
import psycopg
import pytest
from sqlalchemy import Connection, event, exc, make_url, text

from gateway.core.errors import DatabaseUnavailable, Misconfigured
from gateway.core.models import ProviderStatus
from gateway.core.sessions import SessionOpened
from gateway.core.states import ProviderState
from gateway.store import migrate
from gateway.store.database import Database, parse_url
from gateway.store.models import DatabaseModelStateStore
from gateway.store.providers import DatabaseProviderStore
from gateway.store.sessions import DatabaseSessionStore
from tests.integration.disks import ordinary_user

CANARY = "s3cr3t-canary"
NOW = 1_790_000_000.0


def opened(session_id: str) -> SessionOpened:
    return SessionOpened(session_id, "r", "a", "m", NOW)


@pytest.fixture
def reachable_path() -> Iterator[Path]:
    """A folder that every user can reach; pytest's own are closed."""
    with tempfile.TemporaryDirectory(prefix="gateway-") as name:
        yield Path(name)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite:///a.db", "sqlite"),
        ("sqlite+aiosqlite:////var/a.db", "sqlite"),
        ("postgresql://u:p@h/db", "postgresql"),
        ("postgresql+psycopg://u:p%40@h:5433/db", "postgresql"),
    ],
)
def test_urls_of_both_databases_are_read(url: str, expected: str) -> None:
    assert Database(url).backend == expected


@pytest.mark.parametrize(
    "url",
    [
        "",
        "nonsense",
        "sqlite://",
        "sqlite:///:memory:",
        f"mysql://u:{CANARY}@h/db",
        f"postgresql://u:{CANARY}@h:port/db",
        f"postgresql://u:p@{CANARY}@h/db",
        f"postgresql+asyncpg://u:{CANARY}@h/db",
        f"postgresql//u:{CANARY}@h/db",
    ],
)
def test_a_wrong_url_is_a_mistake_that_shows_no_password(url: str) -> None:
    with pytest.raises(Misconfigured) as refused:
        parse_url(url)
    assert "The database URL" in refused.value.message
    assert CANARY not in everything_said_by(refused.value)


def test_no_password_in_the_error_or_the_log_of_a_dead_server(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    url = f"postgresql://user:{CANARY}@127.0.0.1:1/db"
    with pytest.raises(DatabaseUnavailable, match="Connection refused") as refused:
        migrate.current(url)
    assert CANARY not in everything_said_by(refused.value)
    with pytest.raises(DatabaseUnavailable) as refused:
        anyio.run(Database(url).open)
    assert CANARY not in everything_said_by(refused.value)
    assert CANARY not in caplog.text


def everything_said_by(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)) + repr(error)


async def test_a_path_without_a_folder_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable, match="unable to open database file"):
        await Database(f"sqlite:///{tmp_path}/missing/gateway.db").open()


async def test_a_file_that_is_no_database_is_unavailable(tmp_path: Path) -> None:
    file = tmp_path / "letter.db"
    file.write_text("Dear database, " * 1000)
    with pytest.raises(DatabaseUnavailable, match="not a database"):
        await Database(f"sqlite:///{file}").open()
    with pytest.raises(DatabaseUnavailable, match="not a database"):
        migrate.current(f"sqlite:///{file}")


async def test_a_folder_that_may_not_be_written_is_unavailable(reachable_path: Path) -> None:
    file = reachable_path / "gateway.db"
    with (
        ordinary_user(file, stat.S_IRUSR | stat.S_IXUSR, None),
        pytest.raises(DatabaseUnavailable, match="unable to open database file"),
    ):
        await Database(f"sqlite:///{file}").open()


async def test_a_file_that_may_not_be_written_is_unavailable(reachable_path: Path) -> None:
    file = reachable_path / "gateway.db"
    migrate.upgrade(f"sqlite:///{file}")
    with (
        ordinary_user(file, stat.S_IRWXU, stat.S_IRUSR),
        pytest.raises(DatabaseUnavailable, match="readonly"),
    ):
        async with Database(f"sqlite:///{file}") as database:
            await DatabaseSessionStore(database).write([opened("s")], [])


async def test_a_full_disk_is_unavailable_and_leaves_whole_batches(sqlite_url: str) -> None:
    migrate.upgrade(sqlite_url)
    async with Database(sqlite_url, pool_size=1) as database:
        store = DatabaseSessionStore(database)
        await store.write([opened("before")], [])
        await database.write(leave_two_pages)
        with pytest.raises(DatabaseUnavailable, match="full"):
            await store.write([opened(f"s{number}") for number in range(500)], [])
        assert [session.opened.id for session in await store.recent(10)] == ["before"]
        await database.write(lambda each: each.exec_driver_sql("PRAGMA max_page_count=100000"))
        await store.write([opened("after")], [])


def leave_two_pages(connection: Connection) -> None:
    pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
    connection.exec_driver_sql(f"PRAGMA max_page_count={pages + 2}")


async def test_a_lock_that_is_not_let_go_is_unavailable(sqlite_url: str) -> None:
    migrate.upgrade(sqlite_url)
    file = make_url(sqlite_url).database
    assert file
    async with Database(sqlite_url, timeout_s=1.0) as database:
        store = DatabaseSessionStore(database)
        with closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(DatabaseUnavailable, match="locked"):
                await store.write([opened("s")], [])
            assert await store.recent(10) == []  # readers do not wait for a writer
            other.execute("ROLLBACK")
    async with Database(sqlite_url) as database:
        await DatabaseSessionStore(database).write([opened("s")], [])


async def test_a_writer_waits_for_another_process_to_let_go(sqlite_url: str) -> None:
    migrate.upgrade(sqlite_url)
    file = make_url(sqlite_url).database
    assert file
    begun = anyio.Event()

    async with Database(sqlite_url) as database, anyio.create_task_group() as tasks:
        store = DatabaseSessionStore(database)
        with closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            listen_for_begin(database, begun)
            tasks.start_soon(store.write, [opened("s")], [])
            await begun.wait()
            other.execute("ROLLBACK")
    async with Database(sqlite_url) as database:
        assert await DatabaseSessionStore(database).find("s") is not None


def listen_for_begin(database: Database, begun: anyio.Event) -> None:
    loop = asyncio.get_running_loop()

    @event.listens_for(database._batches, "before_cursor_execute")
    def notice(_c: object, _cursor: object, statement: str, *_: object) -> None:
        if statement == "BEGIN IMMEDIATE":
            loop.call_soon_threadsafe(begun.set)


async def test_a_server_that_goes_away_is_unavailable_until_it_is_back(
    postgres_url: str, postgres_server: str
) -> None:
    migrate.upgrade(postgres_url)
    name = make_url(postgres_url).database
    async with Database(postgres_url) as database:
        store = DatabaseSessionStore(database)
        await store.write([opened("before")], [])
        with psycopg.connect(postgres_server, autocommit=True) as server:
            server.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
            disconnect_all(server, name)
            with pytest.raises(DatabaseUnavailable, match="not currently accepting"):
                await store.write([opened("lost")], [])
            with pytest.raises(DatabaseUnavailable):
                await store.recent(1)
            with pytest.raises(DatabaseUnavailable):
                migrate.require_head(postgres_url)
            server.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        await store.write([opened("after")], [])
        assert {s.opened.id for s in await store.recent(9)} == {"before", "after"}


async def test_a_connection_cut_in_a_transaction_is_unavailable(
    postgres_url: str, postgres_server: str
) -> None:
    migrate.upgrade(postgres_url)
    async with Database(postgres_url) as database:
        with pytest.raises(DatabaseUnavailable):
            async with database.writing() as connection:
                await connection.execute(text("SELECT 1"))
                with psycopg.connect(postgres_server, autocommit=True) as server:
                    disconnect_all(server, make_url(postgres_url).database)
                await connection.execute(text("SELECT 1"))
        assert database.connections_in_use == 0
        await DatabaseSessionStore(database).write([opened("after")], [])


def disconnect_all(server: psycopg.Connection[tuple[object, ...]], name: str | None) -> None:
    server.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s", [name]
    )


async def test_every_method_of_every_store_speaks_of_an_unavailable_database(
    empty_url: str,
) -> None:
    async with Database(empty_url) as database:  # no tables: it is not migrated
        sessions = DatabaseSessionStore(database)
        models = DatabaseModelStateStore(database)
        providers = DatabaseProviderStore(database)
        status = ProviderStatus("p", "k", ProviderState.UP, NOW)
        for call in (
            lambda: sessions.write([opened("s")], []),
            lambda: sessions.interrupt_orphans("a", NOW, boot="b"),
            lambda: sessions.purge(NOW, 1),
            lambda: sessions.recent(1),
            lambda: sessions.find("s"),
            lambda: models.reconcile("a", "p", [], NOW),
            lambda: models.all("a"),
            lambda: providers.put("a", [status]),
            lambda: providers.all("a"),
        ):
            with pytest.raises(DatabaseUnavailable):
                await call()


async def test_a_defect_of_ours_is_not_called_unavailable(database: Database) -> None:
    with pytest.raises(exc.IntegrityError):
        async with database.writing() as connection:
            await connection.execute(text("INSERT INTO models (node) VALUES ('a')"))
    assert database.connections_in_use == 0


async def test_an_error_in_a_transaction_undoes_it(database: Database) -> None:
    statement = text(
        "INSERT INTO providers (node, name, kind, state, checked_at, capabilities) "
        "VALUES ('a', 'p', 'k', 'UP', '2026-01-01 00:00:00', '[]')"
    )
    with pytest.raises(KeyError):
        async with database.writing() as connection:
            await connection.execute(statement)
            raise KeyError("of the caller")
    assert await DatabaseProviderStore(database).all("a") == []


async def test_waiting_for_a_connection_is_bounded(database_url: str) -> None:
    async with Database(database_url, pool_size=1, timeout_s=1.0) as database:
        with pytest.raises(DatabaseUnavailable):
            async with database.reading(), database.reading():
                raise AssertionError("there is but one connection")
        assert database.connections_in_use == 0


async def test_a_closed_database_is_unavailable(database_url: str) -> None:
    database = Database(database_url)
    with pytest.raises(DatabaseUnavailable, match="closed"):
        await DatabaseSessionStore(database).recent(1)
    await database.open()
    await database.aclose()
    await database.aclose()
    with pytest.raises(DatabaseUnavailable, match="closed"):
        await DatabaseSessionStore(database).recent(1)


async def test_a_storm_of_cancellations_leaves_no_connection_behind(database_url: str) -> None:
    async with Database(database_url) as database:
        store = DatabaseSessionStore(database)
        for steps in range(40):
            async with anyio.create_task_group() as tasks:
                for number in range(8):
                    tasks.start_soon(store.write, [opened(f"s{steps}-{number}")], [])
                    tasks.start_soon(store.recent, 10)
                for _ in range(steps):
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
            assert database.connections_in_use == 0
        await store.write([opened("after")], [])
        assert await store.find("after") is not None


async def test_a_cancelled_write_is_whole_or_undone(database: Database) -> None:
    statement = text(
        "INSERT INTO providers (node, name, kind, state, checked_at, capabilities) "
        "VALUES ('a', :name, 'k', 'UP', '2026-01-01 00:00:00', '[]')"
    )
    with anyio.CancelScope() as scope:
        async with database.writing() as connection:
            await connection.execute(statement, {"name": "one"})
            scope.cancel()
            await connection.execute(statement, {"name": "two"})
        await anyio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert database.connections_in_use == 0
    kept = {status.name for status in await DatabaseProviderStore(database).all("a")}
    assert kept == ({"one", "two"} if database.backend == "sqlite" else set())


async def test_a_query_that_is_cancelled_lets_go_at_once(postgres_url: str) -> None:
    async with Database(postgres_url) as database:
        with anyio.fail_after(5), anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:

                async def cancel_once_it_runs() -> None:
                    async with database.reading() as connection:
                        running = text(
                            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%sleep(60)' "
                            "AND state = 'active' AND pid <> pg_backend_pid()"
                        )
                        while not (await connection.execute(running)).scalar_one():
                            await connection.rollback()
                            await connection.begin()
                    scope.cancel()

                tasks.start_soon(cancel_once_it_runs)
                async with database.reading() as connection:
                    await connection.execute(text("SELECT pg_sleep(60)"))
        assert scope.cancelled_caught
        assert database.connections_in_use == 0


async def test_who_is_cancelled_between_two_queries_costs_no_connection(postgres_url: str) -> None:
    """F38"""
    async with Database(postgres_url) as database:
        made: list[object] = []
        assert database._engine is not None
        event.listen(database._engine.sync_engine, "connect", lambda *_: made.append(_))
        for _ in range(10):
            with anyio.CancelScope() as scope:
                async with database.reading() as connection:
                    await connection.execute(text("SELECT 1"))
                    scope.cancel()
                    await anyio.sleep_forever()
            assert scope.cancelled_caught
            assert database.connections_in_use == 0
    assert made == []


async def test_closing_leaves_no_thread_behind(sqlite_url: str) -> None:
    migrate.upgrade(sqlite_url)
    before = set(threading.enumerate())
    async with Database(sqlite_url) as database:
        store = DatabaseSessionStore(database)
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(store.recent, 10)
    workers = [t for t in threading.enumerate() if t not in before and "worker_thread" in t.name]
    for thread in workers:
        thread.join(5.0)
    assert not any(thread.is_alive() for thread in workers)
