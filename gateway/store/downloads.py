"""Downloads in the database: the queue, and who may work on what. Decides no transition itself.

Leases go by the database's clock, so that the clocks of several gateways may differ.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, Select, Update, and_, delete, insert, or_, select, update

from gateway.core.downloads import (
    ENDED,
    LEGAL_SOURCES,
    SETTLED,
    Download,
    DownloadFault,
    DownloadOrder,
    DownloadState,
    Progress,
)
from gateway.core.ports import DownloadChange, Worker
from gateway.store.clock import read_clock
from gateway.store.database import Database
from gateway.store.tables import downloads


class DatabaseDownloadStore:
    """The DownloadStore of a real gateway."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, download: Download) -> None:
        async with self._database.writing() as connection:
            await connection.execute(insert(downloads).values(_values(download)))

    async def find(self, download_id: str) -> Download | None:
        async with self._database.reading() as connection:
            row = (await connection.execute(_of(download_id))).first()
        return None if row is None else _download(row)

    async def newest(self, limit: int, states: Sequence[DownloadState] = ()) -> Sequence[Download]:
        statement = select(downloads).order_by(downloads.c.created_at.desc(), downloads.c.id.desc())
        if states:
            statement = statement.where(downloads.c.state.in_(sorted(states)))
        async with self._database.reading() as connection:
            return [_download(row) for row in await connection.execute(statement.limit(limit))]

    async def claim(self, worker: Worker, places: Sequence[str]) -> Download | None:
        async with self._database.writing() as connection:
            now = await read_clock(connection)
            await connection.execute(_give_back(worker, places, now))
            row = (await connection.execute(_next(worker, places, now))).first()
            if row is None:
                return None
            taken = (
                update(downloads)
                .where(downloads.c.id == row.id)
                .values(
                    state=DownloadState.RUNNING,
                    node=worker.node,
                    boot=worker.boot,
                    leased_until=now + worker.lease_s,
                    updated_at=now,
                    error=None,
                    message=None,
                )
            )
            await connection.execute(taken)
            row = (await connection.execute(_of(row.id))).one()
        return _download(row)

    async def keep(
        self, download_id: str, worker: Worker, progress: Progress, commit: str | None
    ) -> bool:
        mine = and_(downloads.c.id == download_id, _is_run_by(worker))
        async with self._database.writing() as connection:
            now = await read_clock(connection)
            values = {
                **_progress_values(progress),
                "commit_id": commit,
                "leased_until": now + worker.lease_s,
                "updated_at": now,
            }
            result = await connection.execute(update(downloads).where(mine).values(values))
        return bool(result.rowcount)

    async def move(
        self,
        download_id: str,
        change: DownloadChange,
        worker: Worker | None = None,
        *,
        sources: Sequence[DownloadState] = (),
    ) -> Download | None:
        accepted = LEGAL_SOURCES[change.state].intersection(sources or DownloadState)
        legal = downloads.c.state.in_(sorted(accepted))
        which = and_(downloads.c.id == download_id, legal)
        if worker is not None:
            which = and_(which, _is_run_by(worker))
        async with self._database.writing() as connection:
            now = await read_clock(connection)
            values = {**_change_values(change), "leased_until": None, "updated_at": now}
            result = await connection.execute(update(downloads).where(which).values(values))
            if not result.rowcount:
                return None
            row = (await connection.execute(_of(download_id))).one()
        return _download(row)

    async def remove(self, download_id: str) -> bool:
        has_ended = downloads.c.state.in_(sorted(ENDED))
        statement = delete(downloads).where(downloads.c.id == download_id, has_ended)
        async with self._database.writing() as connection:
            return bool((await connection.execute(statement)).rowcount)

    async def purge(self, changed_before: float, limit: int) -> int:
        old = (
            select(downloads.c.id)
            .where(downloads.c.state.in_(sorted(SETTLED)), downloads.c.updated_at < changed_before)
            .order_by(downloads.c.updated_at)
            .limit(limit)
        )
        statement = delete(downloads).where(downloads.c.id.in_(old))
        async with self._database.writing() as connection:
            return int((await connection.execute(statement)).rowcount)


def _of(download_id: str) -> Select[Any]:
    return select(downloads).where(downloads.c.id == download_id)


def _next(worker: Worker, places: Sequence[str], now: float) -> Select[Any]:
    """Choose the oldest that is queued, that nobody keeps any more, or that an earlier run of
    this gateway left."""
    is_free = or_(downloads.c.state == DownloadState.QUEUED, _is_left(worker, now))
    return (
        select(downloads.c.id)
        .where(is_free, downloads.c.place.in_(sorted(places)))
        .order_by(downloads.c.created_at, downloads.c.id)
        .limit(1)
        # Two gateways that look at once must not both find it; SQLite has one writer anyway.
        .with_for_update(skip_locked=True)
    )


def _give_back(worker: Worker, places: Sequence[str], now: float) -> Update:
    """Queue again what nobody runs any more and is for none of the places."""
    return (
        update(downloads)
        .where(_is_left(worker, now), downloads.c.place.not_in(sorted(places)))
        .values(state=DownloadState.QUEUED, leased_until=None, updated_at=now)
    )


def _is_left(worker: Worker, now: float) -> Any:
    is_of_before = and_(downloads.c.node == worker.node, downloads.c.boot != worker.boot)
    is_over = or_(downloads.c.leased_until.is_(None), downloads.c.leased_until < now)
    return and_(downloads.c.state == DownloadState.RUNNING, or_(is_of_before, is_over))


def _is_run_by(worker: Worker) -> Any:
    return and_(
        downloads.c.state == DownloadState.RUNNING,
        downloads.c.node == worker.node,
        downloads.c.boot == worker.boot,
    )


def _values(download: Download) -> dict[str, object]:
    order = download.order
    return {
        "id": download.id,
        "source": order.source,
        "repo": order.repo,
        "revision": order.revision,
        "patterns": list(order.patterns),
        "force": order.force,
        "place": download.place,
        "state": download.state,
        "created_at": download.created_at,
        "updated_at": download.updated_at,
        "commit_id": download.commit,
        "path": download.path,
        "message": download.message,
        "error": _fault_value(download.error),
        **_progress_values(download.progress),
    }


def _progress_values(progress: Progress) -> dict[str, object]:
    return {
        "bytes_done": progress.bytes_done,
        "bytes_total": progress.bytes_total,
        "files_done": progress.files_done,
        "files_total": progress.files_total,
    }


def _change_values(change: DownloadChange) -> dict[str, object]:
    values: dict[str, object] = {"state": change.state, "error": _fault_value(change.error)}
    values["message"] = change.message
    if change.place is not None:
        values["place"] = change.place
    if change.path is not None:
        values["path"] = change.path
    if change.commit is not None or change.looks_up_anew:
        values["commit_id"] = change.commit
    if change.progress is not None:
        values |= _progress_values(change.progress)
    return values


def _fault_value(fault: DownloadFault | None) -> dict[str, object] | None:
    if fault is None:
        return None
    return {
        "code": fault.code,
        "message": fault.message,
        "hint": fault.hint,
        "retryable": fault.retryable,
    }


def _download(row: Row[Any]) -> Download:
    return Download(
        id=row.id,
        order=DownloadOrder(row.source, row.repo, row.revision, tuple(row.patterns), row.force),
        place=row.place,
        state=DownloadState(row.state),
        created_at=row.created_at,
        updated_at=row.updated_at,
        progress=Progress(row.bytes_done, row.bytes_total, row.files_done, row.files_total),
        commit=row.commit_id,
        path=row.path,
        message=row.message,
        error=DownloadFault(**row.error) if row.error else None,
    )
