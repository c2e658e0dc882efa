"""What downloads left in the Hub's cache that no snapshot shows: partial files, and whole ones of
snapshots that never came to be. Ours and huggingface_hub's, and nothing else. All of it blocks.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from gateway.core.downloads import is_blob_name
from gateway.core.errors import StorageFailed
from gateway.core.leftovers import Leftover
from gateway.hub.layout import REPOSITORY, folder_name, repository_name
from gateway.hub.repository import INCOMPLETE, STAGING, Repository, remove_tree
from gateway.hub.shared_blobs import find_shared, sweep


class HubLeftovers:
    """A core.ports.LeftoverCache: that of the Hub's files at `cache`."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache

    def find(self) -> list[Leftover]:
        return list(self._find())

    def _find(self) -> Iterator[Leftover]:
        with suppress(OSError):
            for folder in sorted(self._cache.iterdir()):
                if folder.name.startswith(REPOSITORY) and not folder.is_symlink():
                    found = [at for _, at in _unshown(folder)]
                    if found:
                        size = sum(map(_own_bytes, found))
                        changed_at = max(at.st_mtime for at in found)
                        yield Leftover(repository_name(folder), size, changed_at)

    def discard(self, repository: str) -> int:
        if not (self._cache / folder_name(repository)).is_dir():
            return 0
        opened = Repository(self._cache, repository)
        shared = find_shared(opened.path / "blobs", self._cache)
        try:
            return discard_leftovers(opened) + sweep(shared, self._cache)
        finally:
            opened.close()


def discard_leftovers(repository: Repository) -> int:
    """Delete what no snapshot shows and nobody is at, and the folders if nothing else is in them;
    return the bytes that this freed. The last that is done with the repository.

    Partial files have the lock of who writes them. Whole ones go only if nobody else has the
    repository opened: who does may be about to show them.
    """
    is_alone = repository.try_alone()
    freed = 0
    for name, at in _unshown(repository.path):
        if name.endswith(INCOMPLETE) or is_alone:
            freed += _own_bytes(at) if _discard(repository, name) else 0
    if is_alone:
        with suppress(OSError):
            for name in os.listdir(repository.folder):
                if name.startswith(STAGING):
                    remove_tree(repository.folder, name)
        with suppress(OSError):  # not empty
            for folder in ("blobs", "snapshots"):
                with suppress(FileNotFoundError):
                    os.rmdir(folder, dir_fd=repository.folder)
            os.rmdir(repository.path)
    return freed


def shown_blobs(repository: Path) -> set[str]:
    """Return the names of the blobs that the snapshots of a repository lead to."""
    blobs = {os.path.abspath(repository / "blobs"), os.path.realpath(repository / "blobs")}
    shown = set()
    for folder, folders, names in os.walk(repository / "snapshots", followlinks=False):
        for name in (*names, *folders):
            with suppress(OSError):  # no link
                target = os.path.join(folder, os.readlink(os.path.join(folder, name)))
                parent, _, blob = os.path.normpath(os.path.abspath(target)).rpartition("/")
                if parent in blobs:
                    shown.add(blob)
    return shown


def _unshown(repository: Path) -> list[tuple[str, os.stat_result]]:
    """Return what lies among the blobs and is shown by no snapshot, by name; no links' targets."""
    found = []
    blobs = repository / "blobs"
    if blobs.is_symlink():
        return []
    try:
        with os.scandir(blobs) as entries:
            for entry in entries:
                at = entry.stat(follow_symlinks=False)
                if _is_ours(entry.name, at):
                    found.append((entry.name, at))
    except OSError:  # no folder, or it went away meanwhile
        return []
    # Afterwards: what was shown meanwhile is none of them.
    shown = shown_blobs(repository) if found else set()
    return [(name, at) for name, at in found if name not in shown]


def _own_bytes(at: os.stat_result) -> int:
    return at.st_size if stat.S_ISREG(at.st_mode) else 0


def _is_ours(name: str, at: os.stat_result) -> bool:
    if name.endswith(INCOMPLETE):
        return stat.S_ISREG(at.st_mode) and is_blob_name(_blob(name))
    return is_blob_name(name) and (stat.S_ISREG(at.st_mode) or stat.S_ISLNK(at.st_mode))


def _blob(name: str) -> str:
    """Return the blob of a partial file; huggingface_hub's names have a word of their own in it."""
    return name.partition(".")[0]


def _discard(repository: Repository, name: str) -> bool:
    lock = repository.try_lock(_blob(name))
    if lock is None:
        return False
    try:
        # Whoever had the lock until now, as huggingface_hub does, may have shown it.
        if name in shown_blobs(repository.path):
            return False
        os.unlink(name, dir_fd=repository.blobs)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StorageFailed(f"What a download left cannot be deleted: {error}.") from error
    finally:
        repository.unlock(lock)
    return True
