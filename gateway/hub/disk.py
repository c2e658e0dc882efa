"""Looks at the folders of models, opens their files and removes them; nothing leads it out.

What is planted in a cache (links, pipes, devices) is seen and named, and never opened.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG
from typing import BinaryIO
from uuid import uuid4

import msgspec

MAX_DEPTH = 4
MAX_FILES = 20_000
MAX_TEXT_BYTES = 64 * 2**20
"""A longer file of text is none that belongs to a model."""
_TRASH = ".deleting-"
_TO_BLOB = re.compile(r"(?:\.\./)+blobs/[0-9A-Za-z]+")


class FileFacts(msgspec.Struct, frozen=True):
    """One regular file: where it really is, its bytes and when it was written."""

    path: str
    size_bytes: int
    changed_ns: int


class FolderFiles(msgspec.Struct, frozen=True):
    """What lies in a folder and below. `files` are by their paths in it; `strays` are what is no
    regular file, or a link that leads out or nowhere."""

    path: Path
    files: Mapping[str, FileFacts]
    strays: tuple[str, ...]

    @property
    def stamp(self) -> str:
        """Text that differs once any file was written, added or removed."""
        facts = [(name, at.size_bytes, at.changed_ns) for name, at in sorted(self.files.items())]
        return hashlib.blake2b(repr((facts, self.strays)).encode(), digest_size=12).hexdigest()

    @property
    def changed_ns(self) -> int:
        return max((at.changed_ns for at in self.files.values()), default=0)

    def read_text(self, name: str) -> str | None:
        """Return the text of a file; None for one that is not there or is no text."""
        facts = self.files.get(name)
        if facts is None or facts.size_bytes > MAX_TEXT_BYTES:
            return None
        try:
            with open_regular(facts.path) as file:
                return file.read(MAX_TEXT_BYTES).decode().strip() or None
        except (OSError, ValueError):
            return None


def look(folder: Path, root: Path) -> FolderFiles:
    """Return what lies in `folder`; a link may lead to anything below `root`, and to nothing else.

    Raises OSError when the folder itself cannot be read, or is elsewhere.
    """
    real_root, real_folder = os.path.realpath(root), os.path.realpath(folder)
    if real_folder != real_root and not _is_below(real_folder, real_root):
        raise OSError(f"{folder} is not below {root}")
    seen = _Look(real_root)
    seen.enter(real_folder, "", MAX_DEPTH)
    return FolderFiles(folder, seen.files, tuple(sorted(seen.strays)))


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file that is no link; raises OSError. Never waits for a pipe."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, flags)
    if not S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is no regular file")
    return os.fdopen(descriptor, "rb")


def is_inside(path: Path, root: Path) -> bool:
    """Tell whether `path`, all links followed, is below `root` or is it."""
    return path.resolve().is_relative_to(root.resolve())


def remove(paths: Collection[Path], root: Path) -> int:
    """Remove files and folders below `root`; return the bytes that this freed.

    Each leaves its name in one step before anything in it goes: who looks meanwhile sees it whole
    or not at all. A link is removed, never what it leads to. Raises OSError.
    """
    real_root = root.resolve()
    freed = 0
    for path in paths:
        parent = path.parent.resolve()
        if not parent.is_relative_to(real_root) or not path.name:
            raise OSError(f"{path} is not below {root}")
        trash = parent / f"{_TRASH}{uuid4().hex}"
        os.rename(parent / path.name, trash)
        freed += _discard(trash)
    return freed


def empty_trash(root: Path) -> int:
    """Remove what a removal that was cut off left below `root`; return the bytes freed."""
    freed = 0
    for pattern in (f"{_TRASH}*", f"*/{_TRASH}*", f"*/*/{_TRASH}*"):
        for trash in root.glob(pattern):
            if is_inside(trash.parent, root):
                with suppress(OSError):  # another gateway may be at it
                    freed += _discard(trash)
    return freed


def _discard(trash: Path) -> int:
    size_bytes = sum(_own_bytes(trash))
    if trash.is_dir() and not trash.is_symlink():
        shutil.rmtree(trash)  # follows no link; where the system can, safe against races as well
    else:
        trash.unlink()
    return size_bytes


def _own_bytes(path: Path) -> Iterator[int]:
    """Yield the bytes of each regular file at or below `path` that has no other name."""
    if path.is_symlink() or not path.is_dir():
        yield _freed_by(path)
    for folder, _, names in os.walk(path, followlinks=False):
        for name in names:
            yield _freed_by(Path(folder, name))


def _freed_by(path: Path) -> int:
    at = path.lstat()
    return at.st_size if S_ISREG(at.st_mode) and at.st_nlink == 1 else 0


class _Look:
    """One look at one folder; `root` is a real path."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._parents: dict[str, bool] = {}
        self.files: dict[str, FileFacts] = {}
        self.strays: list[str] = []

    def enter(self, folder: str, prefix: str, depth: int) -> None:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = f"{prefix}{entry.name}"
                # A name that is no text can be neither asked for nor sent.
                is_told = entry.name.isprintable() and not entry.name.startswith(_TRASH)
                if not is_told or len(self.files) >= MAX_FILES:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    if depth > 1:
                        self._enter_below(entry.path, f"{name}/", depth - 1)
                elif facts := self._facts(entry, folder):
                    self.files[name] = facts
                else:
                    self.strays.append(name)

    def _enter_below(self, folder: str, prefix: str, depth: int) -> None:
        try:
            self.enter(folder, prefix, depth)
        except OSError:
            self.strays.append(prefix)

    def _facts(self, entry: os.DirEntry[str], folder: str) -> FileFacts | None:
        try:
            path = self._target(entry, folder) if entry.is_symlink() else entry.path
            at = None if path is None else os.lstat(path)
        except OSError:
            return None
        if path is None or at is None or not S_ISREG(at.st_mode):
            return None
        return FileFacts(path, at.st_size, at.st_mtime_ns)

    def _target(self, entry: os.DirEntry[str], folder: str) -> str | None:
        """Return where a link really leads; None when that is not below the root."""
        text = os.readlink(entry.path)
        if _TO_BLOB.fullmatch(text):
            # The form of the Hub's own links: nothing in it can be a link but the last two parts.
            path = os.path.normpath(os.path.join(folder, text))
            if not os.path.islink(path):
                return path if self._is_plain(os.path.dirname(path)) else None
        path = os.path.realpath(entry.path)
        return path if _is_below(path, self._root) else None

    def _is_plain(self, folder: str) -> bool:
        if folder not in self._parents:
            real = os.path.realpath(folder)
            self._parents[folder] = real == folder and _is_below(real, self._root)
        return self._parents[folder]


def _is_below(path: str, root: str) -> bool:
    return path.startswith(root.rstrip("/") + "/")
