"""What downloads left in the Hub's cache: found, and removed without what anybody needs."""

import os
from pathlib import Path

import pytest

from gateway.core.downloads import RemoteFile
from gateway.hub.leftovers import HubLeftovers
from gateway.hub.repository import Repository
from tests.hub_folders import model_files, put_cached

WHOLE, PARTIAL, THEIRS = "1" * 64, "2" * 64, "3" * 40
NEXT = "b" * 40


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache with a whole model, beside which downloads left three files."""
    put_cached(tmp_path, "o/n")
    blobs = tmp_path / "models--o--n/blobs"
    (blobs / WHOLE).write_bytes(bytes(30))
    (blobs / f"{PARTIAL}.incomplete").write_bytes(bytes(20))
    # huggingface_hub has a word of its own in the names of its partial files.
    (blobs / f"{THEIRS}.0a1b2c3d.incomplete").write_bytes(bytes(10))
    for at, path in enumerate(sorted(blobs.iterdir())):
        os.utime(path, (1000 + at, 1000 + at))
    return tmp_path


def left(cache: Path) -> dict[str, int]:
    return {each.repository: each.size_bytes for each in HubLeftovers(cache).find()}


def test_what_no_snapshot_shows_is_found_with_when_it_grew_last(cache: Path) -> None:
    put_cached(cache, "o/whole")
    [found] = HubLeftovers(cache).find()
    assert (found.repository, found.size_bytes) == ("o/n", 60)
    blobs = cache / "models--o--n/blobs"
    names = (WHOLE, f"{PARTIAL}.incomplete", f"{THEIRS}.0a1b2c3d.incomplete")
    assert found.changed_at == max((blobs / name).stat().st_mtime for name in names)


def test_it_goes_and_the_models_stay(cache: Path) -> None:
    assert HubLeftovers(cache).discard("o/n") == 60
    blobs = cache / "models--o--n/blobs"
    assert sorted(each.stat().st_size for each in blobs.iterdir()) == sorted(
        len(data) for data in model_files().values()
    )
    assert left(cache) == {}


def test_a_repository_of_nothing_else_goes_whole(cache: Path) -> None:
    blobs = cache / "models--o--failed/blobs"
    blobs.mkdir(parents=True)
    (blobs / WHOLE).write_bytes(b"x")
    (cache / f"models--o--failed/.staging-{NEXT}-0011/sub").mkdir(parents=True)
    (cache / f"models--o--failed/.staging-{NEXT}-0011/sub/a").symlink_to("../../blobs/x")
    assert HubLeftovers(cache).discard("o/failed") == 1
    assert not (cache / "models--o--failed").exists()
    assert HubLeftovers(cache).discard("o/failed") == 0


def test_what_somebody_is_at_stays(cache: Path) -> None:
    at_work = Repository(cache, "o/n")
    lock = at_work.try_lock(PARTIAL)
    assert lock is not None
    assert HubLeftovers(cache).discard("o/n") == 10
    assert left(cache) == {"o/n": 50}
    at_work.unlock(lock)
    at_work.close()
    assert HubLeftovers(cache).discard("o/n") == 50


def test_a_whole_file_whose_lock_somebody_has_stays(cache: Path) -> None:
    """So does huggingface_hub until its snapshot shows the file."""
    other = Repository(cache, "o/n")
    lock = other.try_lock(WHOLE)
    assert lock is not None
    other.close()
    assert HubLeftovers(cache).discard("o/n") == 30
    assert left(cache) == {"o/n": 30}
    other.unlock(lock)


def test_foreign_files_and_links_are_no_leftovers(cache: Path, tmp_path: Path) -> None:
    HubLeftovers(cache).discard("o/n")
    blobs = cache / "models--o--n/blobs"
    (blobs / "notes.txt").write_text("mine")
    (blobs / "x.incomplete").write_text("mine")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / WHOLE).write_bytes(b"secret")
    (cache / "models--o--planted").mkdir()
    (cache / "models--o--planted/blobs").symlink_to(outside)
    (cache / "models--o--link").symlink_to(outside)
    assert left(cache) == {}
    assert left(tmp_path / "nowhere") == {}


def test_a_file_that_only_an_older_snapshot_shows_stays(cache: Path) -> None:
    HubLeftovers(cache).discard("o/n")
    put_cached(cache, "o/n", NEXT, model_files(sub=b"1"), branch="next")
    assert left(cache) == {}
    repository = Repository(cache, "o/n")
    repository.publish("c" * 40, "main", [RemoteFile("a/b/c.json", 1, _blob(cache, "sub"))])
    repository.close()
    (cache / f"models--o--n/snapshots/{NEXT}/sub").unlink()
    assert left(cache) == {}


def _blob(cache: Path, name: str) -> str:
    return os.path.basename(os.readlink(cache / f"models--o--n/snapshots/{NEXT}/{name}"))
