"""Disks that are full or closed, for the tests of what the gateway writes."""

import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NOBODY = 65534


@contextmanager
def tiny_disk(folder: Path, size: str = "64k") -> Iterator[Path]:
    """A file system of its own of that size; skips where none can be mounted."""
    folder.mkdir(exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def sealed_folder(folder: Path) -> Iterator[Path]:
    """A folder in which nothing can be made, for root neither; skips where that cannot be."""
    folder.mkdir()
    if os.geteuid() != 0:
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
        yield folder
        folder.chmod(stat.S_IRWXU)
        return
    with tiny_disk(folder, "64k,ro"):
        yield folder


def fill_up(disk: Path) -> Path:
    """Take all the room that is left; return the file that has it."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            return ballast
    raise AssertionError("the disk has no end")


@contextmanager
def ordinary_user(file: Path, folder_mode: int, file_mode: int | None) -> Iterator[None]:
    """Set the rights of a file and its folder, and be somebody whom they hold back: not root."""
    is_root = os.geteuid() == 0
    modes = [(file, file_mode)] if file_mode is not None else []
    for path, mode in [*modes, (file.parent, folder_mode)]:
        path.chmod(mode)
        if is_root:
            os.chown(path, NOBODY, NOBODY)
    if is_root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        file.parent.chmod(stat.S_IRWXU)
