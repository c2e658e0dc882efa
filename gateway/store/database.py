"""Connections: the URL, the engine, transactions, and what a database fault becomes.

Owns how SQLite and PostgreSQL are opened and the one translation of their errors. Knows no table.
"""

import re
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from types import TracebackType
from typing import Any, Self, TypeVar

import anyio
import anyio.to_thread
from sqlalchemy import (
    URL,
    Connection,
    Engine,
    NullPool,
    Table,
    create_engine,
    event,
    exc,
    make_url,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import QueuePool

from gateway.core.errors import DatabaseUnavailable, Misconfigured

T = TypeVar("T")

_RELEASE_TIMEOUT_S = 5.0

_SYNC_DRIVERS = {"sqlite": "sqlite+pysqlite", "postgresql": "postgresql+psycopg"}
_ASYNC_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+psycopg_async"}
_ACCEPTED = {"sqlite", "postgresql", *_SYNC_DRIVERS.values(), *_ASYNC_DRIVERS.values()}

# Errors that DBAPI calls a programmer's, although here they mean: not this database, not now.
# Source: PostgreSQL, appendix A: insufficient_privilege, undefined_table, undefined_column.
_UNAVAILABLE_STATES = frozenset({"42501", "42P01", "42703"})


def parse_url(url: str) -> URL:
    """Return the URL of a supported database; raises Misconfigured, which shows no part of it."""
    try:
        parsed = make_url(url)
    except (exc.ArgumentError, ValueError):
        raise Misconfigured([_describe_url_mistake("cannot be read")]) from None
    if parsed.drivername not in _ACCEPTED:
        raise Misconfigured([_describe_url_mistake("is of an unknown kind")])
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise Misconfigured([_describe_url_mistake("names no file")])
    if "@" in (parsed.host or ""):
        # Half a password would pass for the host, and hosts are shown in errors.
        raise Misconfigured([_describe_url_mistake("has an '@' too many; write it as %40")])
    return parsed


def prepare_sqlite(engine: Engine, *, foreign_keys: bool = True) -> None:
    """Make every connection of `engine` durable, patient, and explicit about its transactions.

    A transaction begins as IMMEDIATE where the execution option `writes` is set: the write lock
    is waited for at the beginning, where SQLite's busy timeout counts; a reader that turns into
    a writer in mid-transaction would be refused at once.
    """

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        try:
            _configure_sqlite(connection, foreign_keys)
        except BaseException:
            connection.close()  # the pool does not know it yet
            raise

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def translated_faults(url: URL | None = None) -> Iterator[None]:
    """Turn every fault of the database into DatabaseUnavailable; defects of ours pass through.

    The driver's own error stays as the cause, for the log. With `url` the message says which
    database it is: for the operator, who is the one to see it; requests are not told.
    """
    try:
        yield
    except (exc.SQLAlchemyError, OSError) as error:
        reason = _describe_fault(error)
        if reason is None:
            raise
        which = f" at {_describe_place(url)}" if url else ""
        raise DatabaseUnavailable(f"The database{which} did not answer: {reason}.") from error


class Database:
    """A pool of connections to one database, for one event loop.

    Every transaction is bounded by `timeout_s`, waiting for a connection included. A cancel cuts
    a transaction on PostgreSQL short and undoes it. On SQLite, which is local and quick, it takes
    effect when the transaction is over: aiosqlite's thread cannot be interrupted, and a close
    that is cancelled twice would wait for it for ever.
    """

    def __init__(self, url: str, *, pool_size: int = 5, timeout_s: float = 5.0) -> None:
        self._url = parse_url(url)
        self._pool_size = pool_size
        self._timeout_s = timeout_s
        self._engine: AsyncEngine | None = None
        self._batches: Engine | None = None
        self._batch_thread = anyio.CapacityLimiter(1)
        # SQLite has one writer at a time. Waiting here is fair, and holds no connection meanwhile.
        self._one_writer = anyio.Lock() if self._is_sqlite else nullcontext()
        self._slots = anyio.Semaphore(pool_size)

    @property
    def backend(self) -> str:
        """`sqlite` or `postgresql`."""
        return self._url.get_backend_name()

    @property
    def connections_in_use(self) -> int:
        pool = self._engine.pool if self._engine else None
        return pool.checkedout() if isinstance(pool, QueuePool) else 0

    @property
    def _is_sqlite(self) -> bool:
        return self.backend == "sqlite"

    async def open(self) -> None:
        """Connect once, to know that the database answers. Raises DatabaseUnavailable."""
        if self._is_sqlite:
            # A connect that fails leaves aiosqlite's thread behind, to report to a loop that may
            # be closed by then. So the file is tried without aiosqlite.
            with translated_faults(self._url):
                await anyio.to_thread.run_sync(_try_file, self._url)
            self._batches = _create_batch_engine(self._url, self._timeout_s)
        self._engine = self._create_engine()
        try:
            async with self.reading() as connection:
                await connection.execute(text("SELECT 1"))
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Close every connection. Harmless when closed already."""
        batches, self._batches = self._batches, None
        if batches is not None:
            batches.dispose()
        engine, self._engine = self._engine, None
        if engine is not None:
            with anyio.move_on_after(_RELEASE_TIMEOUT_S, shield=True):
                await engine.dispose()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """Lend a connection in a transaction that sees one state of the database."""
        with translated_faults(), anyio.fail_after(self._timeout_s):
            async with self._transaction(writes=False) as connection:
                yield connection

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """Lend a connection in a transaction that commits at the end, all of it or nothing."""
        with translated_faults(), anyio.fail_after(self._timeout_s):
            async with self._one_writer, self._transaction(writes=True) as connection:
                yield connection

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction that commits at its end, all of it or nothing.

        On SQLite it has a thread for itself from begin to commit. With `writing` each step waits
        for a turn of the event loop, which is long where many streams are, and a batch is made of
        many steps.
        """
        if not self._is_sqlite:
            async with self.writing() as connection:
                return await connection.run_sync(work)
        with translated_faults(), anyio.fail_after(self._timeout_s):
            async with self._one_writer:
                return await anyio.to_thread.run_sync(
                    self._write_batch, work, limiter=self._batch_thread
                )

    def insert(self, table: Table) -> sqlite.Insert | postgresql.Insert:
        """Return an INSERT that knows ON CONFLICT."""
        return sqlite.insert(table) if self.backend == "sqlite" else postgresql.insert(table)

    @asynccontextmanager
    async def _transaction(self, *, writes: bool) -> AsyncIterator[AsyncConnection]:
        if self._engine is None:
            raise DatabaseUnavailable("The database is closed.")
        engine = self._engine.execution_options(writes=writes)
        async with self._slots:
            with anyio.CancelScope(shield=self._is_sqlite):
                connection = await engine.connect()
                try:
                    await connection.begin()
                    yield connection
                    await connection.commit()
                finally:
                    with anyio.move_on_after(_RELEASE_TIMEOUT_S, shield=True):
                        await connection.close()

    def _write_batch(self, work: Callable[[Connection], T]) -> T:
        if self._batches is None:
            raise DatabaseUnavailable("The database is closed.")
        with self._batches.begin() as connection:
            return work(connection)

    def _create_engine(self) -> AsyncEngine:
        engine = create_async_engine(
            self._url.set(drivername=_ASYNC_DRIVERS[self.backend]),
            connect_args=_connect_arguments(self._url, self._timeout_s),
            hide_parameters=True,
            pool_size=self._pool_size,
            max_overflow=0,
            pool_use_lifo=True,  # one connection has the pages and the statements at hand
            pool_pre_ping=not self._is_sqlite,
        )
        if self._is_sqlite:
            prepare_sqlite(engine.sync_engine)
        return engine


def create_sync_engine(url: URL, timeout_s: float) -> Engine:
    """Return a blocking engine that keeps no connections, for migrations."""
    backend = url.get_backend_name()
    engine = create_engine(
        url.set(drivername=_SYNC_DRIVERS[backend]),
        connect_args=_connect_arguments(url, timeout_s),
        poolclass=NullPool,
        hide_parameters=True,
    )
    if backend == "sqlite":
        # SQLite alters a table by copying and dropping it: foreign keys would cascade.
        prepare_sqlite(engine, foreign_keys=False)
    return engine


def _create_batch_engine(url: URL, timeout_s: float) -> Engine:
    """Return SQLite's blocking engine of one connection, each of whose transactions writes."""
    engine = create_engine(
        url.set(drivername=_SYNC_DRIVERS["sqlite"]),
        connect_args=_connect_arguments(url, timeout_s),
        pool_size=1,
        max_overflow=0,
        hide_parameters=True,
    )
    prepare_sqlite(engine)
    return engine.execution_options(writes=True)


def _try_file(url: URL) -> None:
    with create_sync_engine(url, timeout_s=1.0).connect():
        pass


def _connect_arguments(url: URL, timeout_s: float) -> dict[str, Any]:
    """Return the driver's arguments that bound the wait for a lock or a server."""
    if url.get_backend_name() == "sqlite":
        return {"timeout": timeout_s}
    return {} if "connect_timeout" in url.query else {"connect_timeout": max(2, int(timeout_s))}


def _configure_sqlite(connection: Any, foreign_keys: bool) -> None:
    connection.isolation_level = None  # the driver begins nothing by itself
    cursor = connection.cursor()
    _enable_wal(cursor)
    # With WAL, NORMAL survives kill -9 whole; only a power cut can lose the last commits, and it
    # never damages the file. FULL would pay an fsync for every batch.
    cursor.execute("PRAGMA synchronous=NORMAL")
    # Or a statement of many rows keeps a file of what it would have to undo.
    cursor.execute("PRAGMA temp_store=MEMORY")
    cursor.execute(f"PRAGMA foreign_keys={'ON' if foreign_keys else 'OFF'}")
    cursor.close()


def _enable_wal(cursor: Any) -> None:
    try:
        cursor.execute("PRAGMA journal_mode=WAL")
    except sqlite3.OperationalError as error:
        # The mode is the file's: whoever holds the lock of a new file is about to set it too.
        if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
            raise


def _describe_place(url: URL) -> str:
    """Return where the database is, without who asks it, and how."""
    if url.get_backend_name() == "sqlite":
        return str(url.database)
    host = url.host or url.query.get("host") or "localhost"
    return f"{host}{f':{url.port}' if url.port else ''}/{url.database}"


def _describe_fault(error: exc.SQLAlchemyError | OSError) -> str | None:
    """Return why the database did not answer; None when the fault is not the database's."""
    match error:
        case exc.DBAPIError():
            ours = exc.IntegrityError | exc.DataError | exc.ProgrammingError | exc.NotSupportedError
            state = getattr(error.orig, "sqlstate", None)
            if isinstance(error, ours) and state not in _UNAVAILABLE_STATES:
                return None
            return _shorten(str(error.orig)) or type(error.orig).__name__
        case TimeoutError():
            return "it took too long"
        case OSError():
            return error.strerror or type(error).__name__
    return None


def _shorten(message: str) -> str:
    """Return the last reason of a driver's message: libpq names every address it tried."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    reasons = [line for line in lines if "failed: " in line] or lines[:1]
    return re.sub(r"\s+", " ", reasons[-1].rsplit("failed: ", 1)[-1]).rstrip(".") if reasons else ""


def _describe_url_mistake(mistake: str) -> str:
    return (
        f"The database URL {mistake}. "
        "Write sqlite:///path/to/file.db or postgresql://user:password@host/name."
    )
