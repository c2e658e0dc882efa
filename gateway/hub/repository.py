"""The folder of one repository in the Hub's cache, to write in: locks, partial files, blobs, links.

The layout is huggingface_hub's (`models--owner--name/{blobs,refs,snapshots}`, locks in `.locks`),
so that it and transformers find the files. Everything is opened step by step from the cache's root
without following a link, so nothing that was planted there leads out. All of it blocks.
"""

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from gateway.core.downloads import RemoteFile
from gateway.core.errors import ChecksumMismatch, InsufficientStorage, StorageFailed
from gateway.hub.layout import folder_name

INCOMPLETE = ".incomplete"
STAGING = ".staging-"
IN_USE = "in-use.lock"
"""Held, shared, by everybody who has the repository's folders opened."""
READ_BYTES = 2**20
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# NONBLOCK: opening a FIFO must not wait for who reads it.
_FILE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def told_storage_faults() -> Iterator[None]:
    """Turn what the file system says into InsufficientStorage and StorageFailed."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise InsufficientStorage("The disk is full.") from error
        reason = error.strerror or type(error).__name__
        raise StorageFailed(f"The Hub's cache cannot be written: {reason}.") from error


class Repository:
    """One repository of the cache at `cache`, its folders opened (`folder`, `blobs`); close it when
    done."""

    def __init__(self, cache: Path, repo: str) -> None:
        """Raises StorageFailed where a folder of it is none, or a link."""
        self.name = folder_name(repo)
        self.path = cache / self.name
        with told_storage_faults():
            cache.mkdir(parents=True, exist_ok=True)
            self._open_folders(cache)

    def _open_folders(self, cache: Path) -> None:
        # The root itself may be a link: that is for the operator to say.
        self._root = os.open(cache, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._opened = [self._root]
        self._cache = os.path.realpath(cache)
        try:
            self._locks = self._sub(self._sub(self._root, ".locks"), self.name)
            self._use = os.open(IN_USE, _FILE_FLAGS, 0o664, dir_fd=self._locks)
            self._opened.append(self._use)
            # Before the folders: nobody removes them then.
            fcntl.flock(self._use, fcntl.LOCK_SH)
            self.folder = self._sub(self._root, self.name)
            self.blobs = self._sub(self.folder, "blobs")
        except BaseException:
            self.close()
            raise

    def _sub(self, parent: int, name: str) -> int:
        opened = _open_folder(parent, name)
        self._opened.append(opened)
        return opened

    def close(self) -> None:
        while self._opened:
            os.close(self._opened.pop())

    @classmethod
    def peek(cls, cache: Path, repo: str, commit: str, files: Sequence[RemoteFile]) -> "Survey":
        """Return what is there, making no folder."""
        if (cache / folder_name(repo)).is_dir():
            repository = cls(cache, repo)
            try:
                return repository.survey(commit, files)
            finally:
                repository.close()
        there = next(path for path in (cache, *cache.parents) if path.is_dir())
        blobs = tuple({file.blob: file for file in files}.values())
        left = sum(file.size_bytes for file in blobs)
        return Survey(blobs, blobs, left, shutil.disk_usage(there).free, False)

    def free_bytes(self) -> int:
        """Return what is free on the disk for this user."""
        status = os.fstatvfs(self.folder)
        return status.f_bavail * status.f_frsize

    def has_blob(self, file: RemoteFile, *, since: float | None = None) -> bool:
        """Tell whether the whole file is there; with `since` (Unix seconds) only one that was
        written after it."""
        try:
            path = os.path.realpath(f"{self._cache}/{self.name}/blobs/{file.blob}")
            found = os.lstat(path)
        except OSError:
            return False
        # huggingface_hub may share blobs between repositories by links inside of the cache.
        is_ours = stat.S_ISREG(found.st_mode) and path.startswith(f"{self._cache}/")
        is_new = since is None or found.st_mtime >= since
        return is_ours and is_new and found.st_size == file.size_bytes

    def try_lock(self, blob: str) -> int | None:
        """Return the lock of a blob, which huggingface_hub takes as well; None while somebody has
        it. Give it back with `unlock`."""
        name = f"{blob}.lock"
        with told_storage_faults():
            lock = os.open(name, _FILE_FLAGS, 0o664, dir_fd=self._locks)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                mine, there = os.fstat(lock), os.stat(name, dir_fd=self._locks)
                if mine.st_ino == there.st_ino:
                    return lock
            except (BlockingIOError, FileNotFoundError):
                pass  # taken; or its file was removed between the two steps
            except BaseException:
                os.close(lock)
                raise
            os.close(lock)
        return None

    def unlock(self, lock: int) -> None:
        os.close(lock)

    def open_partial(self, file: RemoteFile, go_on: Callable[[], None]) -> "Partial":
        """Return the partial file with what is there of it; the blob's lock must be held.

        `go_on` is called between the pieces that are read, and may raise.
        """
        with told_storage_faults():
            return Partial(self.blobs, file, go_on)

    def survey(
        self, commit: str, files: Sequence[RemoteFile], *, since: float | None = None
    ) -> "Survey":
        """Return what is there of the files; with `since` only what is younger counts."""
        blobs = {file.blob: file for file in files}
        missing = self._missing(files, since)
        left = sum(file.size_bytes - self.partial_bytes(file) for file in missing)
        is_published = not missing and all(
            _read_link(self.snapshot(commit) / file.path) == _link_target(file) for file in files
        )
        return Survey(tuple(blobs.values()), missing, left, self.free_bytes(), is_published)

    def partial_bytes(self, file: RemoteFile) -> int:
        """Return how much of the file was fetched before and is kept."""
        try:
            found = os.stat(file.blob + INCOMPLETE, dir_fd=self.blobs, follow_symlinks=False)
        except OSError:
            return 0
        is_usable = stat.S_ISREG(found.st_mode) and found.st_size <= file.size_bytes
        return found.st_size if is_usable else 0

    def try_alone(self) -> bool:
        """Have the repository alone from now on; False while somebody else has it opened."""
        try:
            fcntl.flock(self._use, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def snapshot(self, commit: str) -> Path:
        return self.path / "snapshots" / commit

    def publish(
        self, commit: str, revision: str, files: Sequence[RemoteFile]
    ) -> tuple[RemoteFile, ...]:
        """Show the files as the snapshot of `commit`, and `revision` as leading to it.

        A new snapshot appears at once with all its files; one that is there already gets those it
        lacks. Returns the files whose blobs are not there: none if it is published and whole.
        """
        if missing := self._missing(files):
            return missing
        with told_storage_faults():
            snapshots = self._sub(self.folder, "snapshots")
            if not self._publish_whole(snapshots, commit, files):
                self._publish_each(snapshots, commit, files)
            if revision != commit:
                self._write_ref(revision, commit)
        # Blobs shared with an older revision may have gone with it while they were being linked.
        return self._missing(files)

    def _missing(
        self, files: Sequence[RemoteFile], since: float | None = None
    ) -> tuple[RemoteFile, ...]:
        blobs = {file.blob: file for file in files}
        return tuple(file for file in blobs.values() if not self.has_blob(file, since=since))

    def _publish_whole(self, snapshots: int, commit: str, files: Sequence[RemoteFile]) -> bool:
        # Beside `snapshots`: whatever looks there must not find half of one.
        staging = f"{STAGING}{commit}-{secrets.token_hex(4)}"
        staged = _open_folder(self.folder, staging)
        try:
            for file in files:
                _link(staged, file)
            os.fsync(staged)
            os.rename(staging, commit, src_dir_fd=self.folder, dst_dir_fd=snapshots)
        except OSError as error:
            remove_tree(self.folder, staging)
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            return False
        finally:
            os.close(staged)
        os.fsync(snapshots)
        return True

    def _publish_each(self, snapshots: int, commit: str, files: Sequence[RemoteFile]) -> None:
        folder = _open_folder(snapshots, commit)
        try:
            for file in files:
                _link(folder, file)
        finally:
            os.close(folder)

    def _write_ref(self, revision: str, commit: str) -> None:
        folder = self._sub(self.folder, "refs")
        *parents, name = revision.split("/")
        for parent in parents:
            folder = self._sub(folder, parent)
        temporary = f".{secrets.token_hex(8)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        written = os.open(temporary, flags, 0o666, dir_fd=folder)
        try:
            os.write(written, commit.encode())
            os.fsync(written)
        finally:
            os.close(written)
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)


class Survey(msgspec.Struct, frozen=True):
    """What is there of some files: `blobs` are the different ones, `missing` those not whole."""

    blobs: tuple[RemoteFile, ...]
    missing: tuple[RemoteFile, ...]
    bytes_left: int
    free_bytes: int
    is_published: bool

    @property
    def bytes_total(self) -> int:
        return sum(file.size_bytes for file in self.blobs)


class Partial:
    """A file on its way: what is on the disk is always what was hashed. One thread at a time."""

    def __init__(self, blobs: int, file: RemoteFile, go_on: Callable[[], None]) -> None:
        self._blobs = blobs
        self._file = file
        self._name = file.blob + INCOMPLETE
        self._is_published = False
        self._fd = os.open(self._name, _FILE_FLAGS, 0o666, dir_fd=blobs)
        try:
            found = os.fstat(self._fd)
            if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
                raise StorageFailed(f"The partial file {self._name} is not what it must be.")
            self.length = 0
            self._digest = self._new_digest()
            if found.st_size <= file.size_bytes:
                self._take_in(go_on)
            else:
                self.restart()
        except BaseException:
            os.close(self._fd)
            raise

    def _new_digest(self) -> Any:
        if self._file.is_lfs:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self._file.size_bytes, usedforsecurity=False)

    def _take_in(self, go_on: Callable[[], None]) -> None:
        """Hash what an earlier run has left."""
        while data := os.pread(self._fd, READ_BYTES, self.length):
            go_on()
            self._digest.update(data)
            self.length += len(data)

    def write(self, data: bytes) -> None:
        """Append; raises InsufficientStorage and StorageFailed, then as much as was written
        counts."""
        with told_storage_faults():
            rest = memoryview(data)
            while rest:
                count = os.pwrite(self._fd, rest, self.length)
                self._digest.update(rest[:count])
                self.length += count
                rest = rest[count:]

    def restart(self) -> None:
        """Forget all that was written."""
        with told_storage_faults():
            os.ftruncate(self._fd, 0)
        self.length = 0
        self._digest = self._new_digest()

    def publish(self) -> None:
        """Make the file a blob, if it is the right one; else forget it and raise
        ChecksumMismatch."""
        if self._digest.hexdigest() != self._file.blob:
            self.restart()
            raise ChecksumMismatch(f"The checksum of {self._file.path} is not what the Hub says.")
        with told_storage_faults():
            os.fsync(self._fd)
            os.rename(self._name, self._file.blob, src_dir_fd=self._blobs, dst_dir_fd=self._blobs)
            os.fsync(self._blobs)
        self._is_published = True

    def close(self) -> None:
        """Let go of the file; what was written stays, for the next run."""
        try:
            if not self.length and not self._is_published:
                with told_storage_faults():
                    os.unlink(self._name, dir_fd=self._blobs)
        finally:
            os.close(self._fd)


def _open_folder(parent: int, name: str) -> int:
    """Return a folder in an opened one, made if it is not there; raises for a link."""
    with suppress(FileExistsError):
        os.mkdir(name, 0o777, dir_fd=parent)
    return os.open(name, _FOLDER_FLAGS, dir_fd=parent)


def _link_target(file: RemoteFile) -> str:
    return "../" * (file.path.count("/") + 2) + f"blobs/{file.blob}"


def _link(folder: int, file: RemoteFile) -> None:
    """Make the file's link in a snapshot, in the place of any that is there."""
    *parents, name = file.path.split("/")
    opened = []
    try:
        for parent in parents:
            folder = _open_folder(folder, parent)
            opened.append(folder)
        temporary = f".{secrets.token_hex(8)}"
        os.symlink(_link_target(file), temporary, dir_fd=folder)
        try:
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            os.unlink(temporary, dir_fd=folder)
            raise
    finally:
        for fd in opened:
            os.close(fd)


def remove_tree(parent: int, name: str) -> None:
    """Delete a folder of folders and links that we made; follows none."""
    folder = os.open(name, _FOLDER_FLAGS, dir_fd=parent)
    try:
        for entry in os.listdir(folder):
            if stat.S_ISDIR(os.stat(entry, dir_fd=folder, follow_symlinks=False).st_mode):
                remove_tree(folder, entry)
            else:
                os.unlink(entry, dir_fd=folder)
    finally:
        os.close(folder)
    os.rmdir(name, dir_fd=parent)


def _read_link(path: Path) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None
