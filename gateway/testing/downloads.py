"""The queue of downloads, kept in memory."""

import time
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from gateway.core.downloads import LEGAL_SOURCES, SETTLED, Download, DownloadState, Progress
from gateway.core.ports import DownloadChange, Worker


class MemoryDownloadStore:
    """A DownloadStore that forgets everything with the process."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._downloads: dict[str, Download] = {}
        self._workers: dict[str, tuple[Worker, float | None]] = {}

    async def add(self, download: Download) -> None:
        self._downloads[download.id] = download

    async def find(self, download_id: str) -> Download | None:
        return self._downloads.get(download_id)

    async def newest(self, limit: int, states: Sequence[DownloadState] = ()) -> Sequence[Download]:
        wanted = [d for d in self._downloads.values() if not states or d.state in states]
        return sorted(wanted, key=lambda d: (d.created_at, d.id), reverse=True)[:limit]

    async def claim(self, worker: Worker, places: Sequence[str]) -> Download | None:
        oldest = sorted(self._downloads.values(), key=lambda d: (d.created_at, d.id))
        for download in oldest:
            is_left = download.state is DownloadState.RUNNING and self._is_free(download, worker)
            if is_left and download.place not in places:
                given_back = replace(download, state=DownloadState.QUEUED, updated_at=self._now())
                self._downloads[download.id] = given_back
        for download in oldest:
            if download.place in places and self._is_free(download, worker):
                self._workers[download.id] = (worker, self._now() + worker.lease_s)
                change = DownloadChange(DownloadState.RUNNING)
                return self._put(download, change)
        return None

    async def keep(
        self, download_id: str, worker: Worker, progress: Progress, commit: str | None
    ) -> bool:
        download = self._downloads.get(download_id)
        if download is None or not self._is_run_by(download, worker):
            return False
        self._workers[download_id] = (worker, self._now() + worker.lease_s)
        progress = replace(progress, rate=None, eta_s=None)
        self._downloads[download_id] = replace(
            download, progress=progress, commit=commit, updated_at=self._now()
        )
        return True

    async def move(
        self,
        download_id: str,
        change: DownloadChange,
        worker: Worker | None = None,
        *,
        sources: Sequence[DownloadState] = (),
    ) -> Download | None:
        download = self._downloads.get(download_id)
        if download is None or download.state not in LEGAL_SOURCES[change.state]:
            return None
        if sources and download.state not in sources:
            return None
        if worker is not None and not self._is_run_by(download, worker):
            return None
        return self._put(download, change)

    async def remove(self, download_id: str) -> bool:
        found = self._downloads.get(download_id)
        if found is None or not found.ended:
            return False
        del self._downloads[download_id]
        return True

    async def purge(self, changed_before: float, limit: int) -> int:
        settled = [d for d in self._downloads.values() if d.state in SETTLED]
        old = sorted(
            (d for d in settled if d.updated_at < changed_before), key=lambda d: d.updated_at
        )
        for download in old[:limit]:
            del self._downloads[download.id]
        return len(old[:limit])

    def _put(self, download: Download, change: DownloadChange) -> Download:
        progress = change.progress or download.progress
        moved = self._downloads[download.id] = replace(
            download,
            state=change.state,
            message=change.message,
            error=change.error,
            place=change.place or download.place,
            path=change.path or download.path,
            commit=None if change.looks_up_anew else change.commit or download.commit,
            progress=replace(progress, rate=None, eta_s=None),
            updated_at=self._now(),
        )
        return moved

    def _is_free(self, download: Download, worker: Worker) -> bool:
        if download.state is not DownloadState.RUNNING:
            return download.state is DownloadState.QUEUED
        by, until = self._workers[download.id]
        is_left = by.node == worker.node and by.boot != worker.boot
        return is_left or until is None or until < self._now()

    def _is_run_by(self, download: Download, worker: Worker) -> bool:
        if download.state is not DownloadState.RUNNING:
            return False
        by, _ = self._workers[download.id]
        return (by.node, by.boot) == (worker.node, worker.boot)
