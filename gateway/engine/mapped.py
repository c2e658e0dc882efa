"""The files of weights that are mapped into this process, and their pages that are in memory.

A mapped page stays until its file is no longer mapped, also when what was read from it has been
copied elsewhere: a model that is converted or packed while it loads would be there twice.
"""

from __future__ import annotations

import ctypes
import mmap
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

STEP_BYTES = 64 * 2**20
"""How much may be read before the pages are let go: each look at the mappings takes time."""

_HEAD = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \d+ +(.*)")


class MappedWeights:
    """The safetensors files of one folder. What is let go is read again where it is needed."""

    def __init__(self, folder: Path) -> None:
        self._files = {str(file.resolve()) for file in folder.glob("*.safetensors")}
        self._read_bytes = 0

    def have_read(self, size_bytes: int) -> None:
        """Take note that so much was read from the files; lets it go from time to time."""
        self._read_bytes += size_bytes
        if self._read_bytes >= STEP_BYTES:
            self.let_go()

    def let_go(self) -> None:
        """Let the system have the pages; without effect where it does not tell what is mapped."""
        self._read_bytes = 0
        with suppress(OSError, AttributeError):  # no /proc, or another libc
            libc = ctypes.CDLL(None, use_errno=True)
            for start, end in self._ranges():
                libc.madvise(
                    ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED
                )

    def _ranges(self) -> Iterator[tuple[int, int]]:
        """Yield where the files are mapped, but not where somebody has written: that is nowhere
        else, and would be lost."""
        current: tuple[int, int] | None = None
        for line in Path("/proc/self/smaps").read_text().splitlines():
            if found := _HEAD.fullmatch(line):
                start, end, path = found.groups()
                current = (int(start, 16), int(end, 16)) if path in self._files else None
            elif current and line.startswith("Anonymous:") and line.split()[1] == "0":
                yield current
