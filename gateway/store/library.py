"""What is kept of models' files in the database: when they came, were used, were verified."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, bindparam, case, delete, func, select

from gateway.core.library import Check, FileRecord, Verdict, Verification
from gateway.store.database import Database
from gateway.store.tables import model_files

_KEY = (model_files.c.node, model_files.c.path)
_REPLACED = (
    "name",
    "source",
    "repository",
    "revision",
    "size_bytes",
    "verified_at",
    "verdict",
    "checked",
    "stamp",
    "reason",
)


class DatabaseFileStore:
    """The FileStore of a real gateway."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, node: str, records: Sequence[FileRecord]) -> None:
        if not records:
            return
        insert = self._database.insert(model_files)
        new, old = insert.excluded.last_used_at, model_files.c.last_used_at
        is_newer = old.is_(None) | (new > old)
        statement = insert.on_conflict_do_update(
            index_elements=_KEY,
            set_={
                **{column: insert.excluded[column] for column in _REPLACED},
                "last_used_at": case((is_newer, func.coalesce(new, old)), else_=old),
            },
        )
        async with self._database.writing() as connection:
            await connection.execute(statement, [_row(node, record) for record in records])

    async def forget(self, node: str, paths: Sequence[str]) -> None:
        if not paths:
            return
        this = model_files.c.node == node, model_files.c.path == bindparam("gone_path")
        async with self._database.writing() as connection:
            await connection.execute(
                delete(model_files).where(*this), [{"gone_path": path} for path in paths]
            )

    async def all(self, node: str) -> Sequence[FileRecord]:
        statement = select(model_files).where(model_files.c.node == node)
        async with self._database.reading() as connection:
            records = [_record(row) for row in await connection.execute(statement)]
        # Sorted here: the databases' collations differ.
        return sorted(records, key=lambda record: record.path)


def _row(node: str, record: FileRecord) -> dict[str, object]:
    verified = record.verification
    return {
        "node": node,
        "path": record.path,
        "name": record.name,
        "source": record.source,
        "repository": record.repository,
        "revision": record.commit,
        "size_bytes": record.size_bytes,
        "first_seen_at": record.first_seen,
        "last_used_at": record.last_used,
        "verified_at": None if verified is None else verified.at,
        "verdict": None if verified is None else verified.verdict.value,
        "checked": None if verified is None else verified.check.value,
        "stamp": None if verified is None else verified.stamp,
        "reason": None if verified is None else verified.reason,
    }


def _record(row: Row[Any]) -> FileRecord:
    return FileRecord(
        path=row.path,
        name=row.name,
        source=row.source,
        size_bytes=row.size_bytes,
        first_seen=row.first_seen_at,
        repository=row.repository,
        commit=row.revision,
        last_used=row.last_used_at,
        verification=None
        if row.verdict is None
        else Verification(
            verdict=Verdict(row.verdict),
            check=Check(row.checked),
            stamp=row.stamp,
            at=row.verified_at,
            reason=row.reason,
        ),
    )
