"""What the libraries of this process take once, for all models: no unloading gives it back."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_STATM = Path("/proc/self/statm")


def resident_bytes() -> int | None:
    """Return the memory of this process that is in RAM; None where the kernel does not tell."""
    try:
        pages = int(_STATM.read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


class Overhead:
    """Counts such bytes as they are taken. Thread-safe."""

    def __init__(self, resident: Callable[[], int | None] = resident_bytes) -> None:
        self._resident = resident
        self._held_bytes = 0
        self._lock = threading.Lock()

    @property
    def held_bytes(self) -> int:
        return self._held_bytes

    @contextmanager
    def counting(self, most_bytes: int) -> Iterator[None]:
        """Count by how much the process grows meanwhile: `most_bytes` at the most, as other threads
        grow as well, and just these where nobody tells."""
        with self._lock:
            before = self._resident()
            try:
                yield
            finally:
                after = self._resident()
                grown = most_bytes if before is None or after is None else after - before
                self._held_bytes += min(max(grown, 0), most_bytes)
