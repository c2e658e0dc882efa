"""The files of weights that are mapped into this process, and their pages that are in memory.

A mapped page stays until its file is no longer mapped, also when what was read from it has been
copied elsewhere: a model that is converted or packed would be there twice.
"""

from __future__ import annotations

import ctypes
import mmap
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

STEP_BYTES = 64 * 2**20
"""How much may be in memory before the pages are let go: each look at the mappings takes time."""
LOOK_BYTES = 8 * 2**20
"""How much may be read before it is looked how much is in memory."""
FEW_BYTES = 2**20
"""Not worth a look."""

_HEAD = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \d+ +(.*)")


class Span(NamedTuple):
    """Addresses, from `start` to before `end`."""

    start: int
    end: int

    def meets(self, other: Span) -> Span:
        return Span(max(self.start, other.start), min(self.end, other.end))


class MappedWeights:
    """The safetensors files of one folder. What is let go is read again where it is needed."""

    def __init__(self, folder: Path) -> None:
        self._files = {str(file.resolve()) for file in folder.glob("*.safetensors")}
        self._read_bytes = 0
        self._kept_bytes = _file_bytes()

    def have_read(self, size_bytes: int) -> None:
        """Take note that so much was read from the files, and let it go from time to time."""
        self._read_bytes += size_bytes
        if self._read_bytes >= LOOK_BYTES:
            self._read_bytes = 0
            self.let_go(STEP_BYTES)

    def let_go(self, least_bytes: int = FEW_BYTES) -> None:
        """Let the system have the pages, if at least so much of files came into memory since it
        had them: who is only told where a weight is has read nothing of it.

        Without effect where the system does not tell what is mapped.
        """
        if _file_bytes() - self._kept_bytes >= least_bytes:
            for span in self.spans():
                _drop(span)
            self._kept_bytes = _file_bytes()

    def spans(self) -> list[Span]:
        """Return where the files are mapped, but not where somebody has written: that is nowhere
        else, and would be lost. Tens of milliseconds."""
        with suppress(OSError):  # no /proc
            return list(self._read_spans())
        return []

    def _read_spans(self) -> Iterator[Span]:
        current: Span | None = None
        for line in Path("/proc/self/smaps").read_text().splitlines():
            if found := _HEAD.fullmatch(line):
                start, end, path = found.groups()
                current = Span(int(start, 16), int(end, 16)) if path in self._files else None
            elif current and line.startswith("Anonymous:") and line.split()[1] == "0":
                yield current


def let_go_of(span: Span, mapped: Sequence[Span]) -> None:
    """Let the system have the pages that lie wholly in `span` and in what is `mapped`."""
    for each in mapped:
        common = span.meets(each)
        start = -(-common.start // mmap.PAGESIZE) * mmap.PAGESIZE
        end = common.end // mmap.PAGESIZE * mmap.PAGESIZE
        if start < end:
            _drop(Span(start, end))


def _drop(span: Span) -> None:
    with suppress(OSError, AttributeError):  # another libc
        ctypes.CDLL(None, use_errno=True).madvise(
            ctypes.c_void_p(span.start),
            ctypes.c_size_t(span.end - span.start),
            mmap.MADV_DONTNEED,
        )


def _file_bytes() -> int:
    """Return the pages of files that this process has in memory; 0 where the kernel does not
    tell."""
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[2]) * mmap.PAGESIZE
    return 0
