"""Stream sessions in the database.

Records may come twice and in any order (a spool is replayed after a crash): an end that arrives
before its opening makes a row that the opening completes, and the first end stays. A session whose
opening and end arrive together is one row written once.
"""

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    case,
    delete,
    func,
    literal_column,
    or_,
    select,
    type_coerce,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.core.events import Timings, Usage
from gateway.core.sessions import Session, SessionClosed, SessionOpened
from gateway.core.states import StreamEnd
from gateway.store.bulk import BulkInsert, Values, given_rows
from gateway.store.database import Database
from gateway.store.tables import UnixTime, boots, clean_count, stream_sessions

UNKNOWN_NODE = ""
"""The node of a session whose opening has not arrived. No gateway has this name."""

UNSEEN_S = 86_400.0
"""Sessions of runs that were never seen, being of an earlier version, are closed after a day."""

_OPENED = (
    "id",
    "request_id",
    "node",
    "boot",
    "requested_model",
    "face",
    "opened_at",
    "caller",
)
_SERVED = ("provider", "model")
"""The last that served it: an opening tells it as well as an end."""
_CLOSED = (
    "end_reason",
    "error_code",
    "prompt_tokens",
    "completion_tokens",
    "queue_ms",
    "load_ms",
    "ttft_ms",
    "total_ms",
    "closed_at",
    "served_by",
)
_USED = ("id", "prompt_tokens", "completion_tokens")
_COLUMNS = (*_OPENED, *_SERVED, *_CLOSED)


class DatabaseSessionStore:
    """The SessionStore of a real gateway."""

    def __init__(self, database: Database) -> None:
        self._database = database
        given = given_rows([stream_sessions.c[name] for name in _USED], database.backend).c
        self._note_usage = (
            update(stream_sessions)
            .where(stream_sessions.c.id == given.id, _is_open)
            .values(prompt_tokens=given.prompt_tokens, completion_tokens=given.completion_tokens)
        )
        self._insert_opening = self._insert((*_OPENED, *_SERVED), {_is_unknown: _OPENED})
        self._insert_ending = self._insert(_COLUMNS, {_is_open: (*_SERVED, *_CLOSED)})
        self._insert_whole = self._insert(
            _COLUMNS, {_is_unknown: _OPENED, _is_open: (*_SERVED, *_CLOSED)}
        )

    async def write(self, opened: Sequence[SessionOpened], closed: Sequence[SessionClosed]) -> None:
        if not opened and not closed:
            return
        openings = {record.id: record for record in opened}
        endings = {record.id: record for record in reversed(closed)}  # the first end stays
        whole: list[Values] = []
        ends: list[Values] = []
        for key, end in endings.items():
            opening = openings.pop(key, None)
            rows = whole if opening else ends
            rows.append((*_opening_of(opening or opening_of(end)), *_ending_row(end)))
        starts = [(*_opening_of(each), each.provider, each.model) for each in openings.values()]

        def insert(connection: Connection) -> None:
            if starts:
                self._insert_opening.execute(connection, starts)
            if whole:
                self._insert_whole.execute(connection, whole)
            if ends:
                self._insert_ending.execute(connection, ends)

        await self._database.write(insert)

    async def note_usage(self, used: Mapping[str, Usage]) -> None:
        if not used:
            return
        rows = []
        for name, usage in used.items():
            counts = clean_count(usage.prompt_tokens), clean_count(usage.completion_tokens)
            rows.append(dict(zip(_USED, (name, *counts), strict=True)))
        await self._database.write(lambda each: each.execute(self._note_usage, {"rows": rows}))

    async def interrupt_orphans(self, node: str, closed_at: float, *, boot: str) -> int:
        statement = (
            update(stream_sessions)
            .where(stream_sessions.c.node == node, _is_open, stream_sessions.c.boot != boot)
            .values(end_reason=StreamEnd.INTERRUPTED.value, closed_at=closed_at)
        )
        async with self._database.writing() as connection:
            return (await connection.execute(statement)).rowcount

    async def beat(self, node: str, boot: str) -> None:
        async with self._database.writing() as connection:
            row = {"boot": boot, "node": node, "seen_at": await _database_time(connection)}
            insert = self._database.insert(boots).values(row)
            statement = insert.on_conflict_do_update(
                index_elements=[boots.c.boot], set_={"seen_at": insert.excluded.seen_at}
            )
            await connection.execute(statement)

    async def interrupt_expired(self, lease_s: float) -> int:
        async with self._database.writing() as connection:
            now = await _database_time(connection)
            is_expired = boots.c.seen_at < now - lease_s
            expired = select(boots.c.boot).where(is_expired)
            is_forsaken = (stream_sessions.c.opened_at < now - UNSEEN_S) & (
                stream_sessions.c.boot.not_in(select(boots.c.boot))
            )
            close = (
                update(stream_sessions)
                .where(_is_open, stream_sessions.c.boot.in_(expired) | is_forsaken)
                .values(end_reason=StreamEnd.INTERRUPTED.value, closed_at=now)
            )
            count = (await connection.execute(close)).rowcount
            await connection.execute(delete(boots).where(is_expired))
            return count

    async def purge(self, opened_before: float, limit: int) -> int:
        oldest = (
            select(stream_sessions.c.id)
            .where(stream_sessions.c.opened_at < opened_before)
            .order_by(stream_sessions.c.opened_at)
            .limit(limit)
            # PostgreSQL's: two gateways that purge at once share the work and do not wait.
            .with_for_update(skip_locked=True)
        )
        statement = delete(stream_sessions).where(stream_sessions.c.id.in_(oldest))
        async with self._database.writing() as connection:
            return (await connection.execute(statement)).rowcount

    async def recent(self, limit: int) -> Sequence[Session]:
        newest = stream_sessions.c.opened_at.desc(), stream_sessions.c.id.desc()
        statement = select(stream_sessions).order_by(*newest).limit(limit)
        async with self._database.reading() as connection:
            return [read_session(row) for row in await connection.execute(statement)]

    async def find(self, session_id: str) -> Session | None:
        statement = select(stream_sessions).where(stream_sessions.c.id == session_id)
        async with self._database.reading() as connection:
            row = (await connection.execute(statement)).one_or_none()
        return read_session(row) if row else None

    def _insert(
        self, names: Sequence[str], changes: Mapping[ColumnElement[bool], Sequence[str]]
    ) -> BulkInsert:
        """Return the INSERT of rows with values for `names`. In a row that is there already, each
        condition that holds for it sets its columns anew, and the others stay."""
        insert = self._database.insert(stream_sessions)
        columns = stream_sessions.c
        statement = insert.on_conflict_do_update(
            index_elements=[columns.id],
            set_={
                # A condition that is the only one is asked of the row already, and not per column.
                name: insert.excluded[name]
                if len(changes) == 1
                else case((condition, insert.excluded[name]), else_=columns[name])
                for condition, changed in changes.items()
                for name in changed
                if name != "id"
            },
            where=or_(*changes),
        )
        return BulkInsert(statement, [columns[name] for name in names])


async def _database_time(connection: AsyncConnection) -> float:
    """Return Unix seconds. The clocks of several gateways differ; the database has one."""
    now = type_coerce(func.now(), UnixTime())
    return float((await connection.execute(select(now))).scalar_one())


_is_open = stream_sessions.c.end_reason.is_(None)
_is_unknown = stream_sessions.c.node == literal_column("''")  # UNKNOWN_NODE, as no parameter


_opening_of: Callable[[SessionOpened], tuple[object, ...]] = attrgetter(*_OPENED)
"""Returns the values of _OPENED."""
_ending_of: Callable[[SessionClosed], tuple[object, ...]] = attrgetter(
    *_SERVED,
    "end.value",
    "error_code",
    "usage.prompt_tokens",
    "usage.completion_tokens",
    "timings.queue_ms",
    "timings.load_ms",
    "timings.ttft_ms",
    "timings.total_ms",
    "closed_at",
)


def _ending_row(record: SessionClosed) -> tuple[object, ...]:
    """Return the values of _SERVED and _CLOSED."""
    return (*_ending_of(record), record.served_by or None)


def opening_of(closed: SessionClosed) -> SessionOpened:
    """Return what an end alone tells of its opening; a real opening replaces it."""
    return SessionOpened(
        id=closed.id,
        request_id="",
        node=UNKNOWN_NODE,
        requested_model=closed.model or "",
        opened_at=closed.closed_at,
        face="",
        provider=closed.provider,
        model=closed.model,
    )


def read_session(row: Row[Any]) -> Session:
    """Return the session that a row of `stream_sessions` is."""
    opened = SessionOpened(
        id=row.id,
        request_id=row.request_id,
        node=row.node,
        requested_model=row.requested_model,
        opened_at=row.opened_at,
        face=row.face,
        provider=row.provider,
        model=row.model,
        boot=row.boot,
        caller=row.caller,
    )
    return Session(opened=opened, closed=_closed(row) if row.end_reason else None)


def _closed(row: Row[Any]) -> SessionClosed:
    return SessionClosed(
        id=row.id,
        provider=row.provider,
        model=row.model,
        end=StreamEnd(row.end_reason),
        closed_at=row.closed_at,
        usage=Usage(row.prompt_tokens or 0, row.completion_tokens or 0),
        timings=Timings(
            queue_ms=row.queue_ms or 0.0,
            load_ms=row.load_ms or 0.0,
            ttft_ms=row.ttft_ms,
            total_ms=row.total_ms or 0.0,
        ),
        error_code=row.error_code,
        served_by=tuple(row.served_by or ()),
    )
