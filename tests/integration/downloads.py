"""A queue of downloads for tests: real but for its store, which is in memory."""

from collections.abc import Mapping

from gateway.core.downloads import Download, DownloadOrder
from gateway.core.ports import DownloadSource
from gateway.services.downloads import DownloadService
from gateway.testing import MemoryDownloadStore


def build_downloads(sources: Mapping[str, DownloadSource]) -> DownloadService:
    """Return a queue in memory that asks nobody; nothing is done before `run`."""

    async def admit(_order: DownloadOrder) -> None: ...

    def completed(_download: Download) -> None: ...

    return DownloadService(
        MemoryDownloadStore(),
        sources,
        node="test",
        boot="b",
        max_running=2,
        max_watchers=8,
        admit=admit,
        completed=completed,
    )
