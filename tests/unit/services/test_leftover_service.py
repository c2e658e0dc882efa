"""Cleaning up after downloads, with the queue and a folder: nobody loses what he may go on with."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from gateway.core.downloads import Download, DownloadState, parse_order
from gateway.core.ports import DownloadChange
from gateway.hub.leftovers import HubLeftovers
from gateway.services.leftovers import Leftovers
from gateway.testing import MemoryDownloadStore
from tests.hub_folders import put_partial

S = DownloadState
DAY_S = 86_400.0
NOW = 2e9


@pytest.fixture
def store() -> MemoryDownloadStore:
    return MemoryDownloadStore()


async def failed(store: MemoryDownloadStore, name: str, at: float = 0.0) -> str:
    await store.add(Download(name, parse_order(f"o/{name}"), "here", S.FAILED, at, at))
    return name


async def clean(
    store: MemoryDownloadStore, cache: Path, *, days: float = 7, dry_run: bool = False
) -> Sequence[tuple[str, int]]:
    service = Leftovers(store, HubLeftovers(cache), place="here", now=lambda: NOW)
    removed = await service.clean(older_s=days * DAY_S, dry_run=dry_run)
    return [(each.repository, each.size_bytes) for each in removed]


async def test_a_failed_download_is_forgotten_with_what_it_left(
    store: MemoryDownloadStore, tmp_path: Path
) -> None:
    old, new = put_partial(tmp_path, "o/old"), put_partial(tmp_path, "o/new")
    await failed(store, "old")
    await failed(store, "new", at=NOW - DAY_S)
    assert await clean(store, tmp_path, dry_run=True) == [("o/old", 5)]
    assert old.exists() and await store.find("old") is not None
    assert await clean(store, tmp_path) == [("o/old", 5)]
    assert (old.exists(), new.exists()) == (False, True)
    assert await store.find("old") is None
    assert await store.find("new") is not None


async def test_one_that_is_resumed_meanwhile_keeps_its_files(tmp_path: Path) -> None:
    class Resuming(MemoryDownloadStore):
        async def remove(self, download_id: str) -> bool:
            await self.move(download_id, DownloadChange(S.QUEUED))
            return await super().remove(download_id)

    store = Resuming()
    kept = put_partial(tmp_path, "o/old")
    await failed(store, "old")
    assert await clean(store, tmp_path) == []
    assert kept.exists()


async def test_what_cannot_be_removed_does_not_keep_the_rest(
    store: MemoryDownloadStore, tmp_path: Path
) -> None:
    put_partial(tmp_path, "o/a")
    (tmp_path / ".locks").mkdir()
    (tmp_path / ".locks/models--o--a").write_text("a file where a folder must be")
    put_partial(tmp_path, "o/b")
    assert await clean(store, tmp_path) == [("o/b", 5)]
