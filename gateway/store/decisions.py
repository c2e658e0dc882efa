"""Decisions in the database: those with a row of their own, and those that the record of a stream
tells as well. Both are read as one."""

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Select, delete, exists, select, text

from gateway.core.decision_records import (
    DecisionFilter,
    DecisionRecord,
    describe_session,
    ends_of,
)
from gateway.store.bulk import BulkInsert, Values
from gateway.store.database import Database
from gateway.store.sessions import UNKNOWN_NODE, read_session
from gateway.store.tables import decisions, stream_sessions

_DECODER = msgspec.json.Decoder(DecisionRecord)


class DatabaseDecisionStore:
    """The DecisionStore of a real gateway."""

    def __init__(self, database: Database) -> None:
        self._database = database
        insert = database.insert(decisions).on_conflict_do_nothing()
        self._insert = BulkInsert(insert, list(decisions.c))

    async def write(self, records: Sequence[DecisionRecord]) -> None:
        if not records:
            return
        rows = [_row(record) for record in records]
        await self._database.write(lambda connection: self._insert.execute(connection, rows))

    async def find(self, decision_id: str) -> DecisionRecord | None:
        own = select(decisions.c.record).where(decisions.c.id == decision_id)
        session = select(stream_sessions).where(stream_sessions.c.id == decision_id)
        async with self._database.reading() as connection:
            record = (await connection.execute(own)).scalar()
            if record is not None:
                return _DECODER.decode(record)
            row = (await connection.execute(session)).one_or_none()
        return describe_session(read_session(row)) if row else None

    async def recent(self, wanted: DecisionFilter) -> Sequence[DecisionRecord]:
        async with self._database.reading() as connection:
            rows = (await connection.execute(_select_own(wanted))).scalars()
            found = [_DECODER.decode(record) for record in rows]
            for row in await connection.execute(_select_sessions(wanted)):
                found.append(describe_session(read_session(row)))
        found.sort(key=lambda each: (each.opened_at, each.id), reverse=True)
        return found[: wanted.limit]

    async def purge(self, opened_before: float, limit: int) -> int:
        oldest = (
            select(decisions.c.id)
            .where(decisions.c.opened_at < opened_before)
            .order_by(decisions.c.opened_at)
            .limit(limit)
            # PostgreSQL's: two gateways that purge at once share the work and do not wait.
            .with_for_update(skip_locked=True)
        )
        async with self._database.writing() as connection:
            statement = delete(decisions).where(decisions.c.id.in_(oldest))
            return (await connection.execute(statement)).rowcount


def _select_own(wanted: DecisionFilter) -> Select[Any]:
    is_wanted = _common(decisions.c, wanted)
    if wanted.outcome is not None:
        is_wanted.append(decisions.c.outcome == wanted.outcome)
    newest = decisions.c.opened_at.desc(), decisions.c.id.desc()
    return select(decisions.c.record).where(*is_wanted).order_by(*newest).limit(wanted.limit)


def _select_sessions(wanted: DecisionFilter) -> Select[Any]:
    columns = stream_sessions.c
    is_wanted = _common(columns, wanted)
    is_wanted.append(~exists().where(decisions.c.id == columns.id))
    is_wanted.append(columns.node != UNKNOWN_NODE)
    if wanted.caller:
        # In so many words, or the index of callers is not used.
        is_wanted.append(columns.caller != text("''"))
    if wanted.outcome == "running":
        is_wanted.append(columns.end_reason.is_(None))
    elif wanted.outcome is not None:
        is_wanted.append(columns.end_reason.in_([end.value for end in ends_of(wanted.outcome)]))
    newest = columns.opened_at.desc(), columns.id.desc()
    return select(stream_sessions).where(*is_wanted).order_by(*newest).limit(wanted.limit)


def _common(columns: Any, wanted: DecisionFilter) -> list[ColumnElement[bool]]:
    """Return what is asked of both tables, whose columns have the same names."""
    same = {
        columns.requested_model: wanted.requested_model,
        columns.provider: wanted.provider,
        columns.model: wanted.model,
        columns.error_code: wanted.error,
        columns.caller: wanted.caller,
    }
    conditions = [column == value for column, value in same.items() if value is not None]
    if wanted.since is not None:
        conditions.append(columns.opened_at >= wanted.since)
    if wanted.until is not None:
        conditions.append(columns.opened_at < wanted.until)
    return conditions


def _row(record: DecisionRecord) -> Values:
    """Return the value of each column of the table."""
    kept = msgspec.structs.replace(record, source="database")
    return (
        record.id,
        record.opened_at,
        record.caller,
        record.requested_model,
        record.provider,
        record.model,
        record.outcome,
        record.error,
        msgspec.json.encode(kept).decode(),
    )
