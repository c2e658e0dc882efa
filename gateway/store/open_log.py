"""The opening log: what began and ended since the last commits, written before a client sees it.

Append-only files of the journal's frames beside the journal's own, never synced: what is in them
survives the death of the process, as a commit of SQLite does with synchronous=NORMAL, and not a
power cut. A file goes when all of it is in the database or in the journal. What a process that died
leaves here the next one's journal reads first.

Writes on the event loop: to the system's cache that is a few microseconds, a thread would take
more. A disk that makes one wait is left alone for a while.
"""

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import anyio.to_thread

from gateway.core.sessions import SessionRecord
from gateway.store.journal import LOG_SUFFIX, encode_frame, remove

logger = logging.getLogger(__name__)

SEGMENT_BYTES = 256 * 2**10
"""About six hundred sessions: as many are read again at most, and found to be there already."""
SLOW_S = 0.1
REST_S = 5.0
"""How long nothing is written after a write that failed or took longer than SLOW_S."""


class _Segment:
    """A file and the ticket of the last record in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
        self.size = 0
        self.last = 0


class FileOpenLog:
    """A core.ports.SessionLog in `folder`, for the run `boot` of a gateway and one event loop."""

    def __init__(
        self,
        folder: Path,
        boot: str,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        write: Callable[[int, bytes], int] = os.write,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._boot = boot
        self._segment_bytes = segment_bytes
        self._write = write
        self._clock = clock
        self._full: deque[_Segment] = deque()
        self._tail: _Segment | None = None
        self._made: _Segment | OSError | None = None
        """The next file, or why there is none: all that the thread hands over."""
        self._count = 0
        self._rests_until = 0.0

    def append(self, records: Sequence[SessionRecord], ticket: int) -> bool:
        tail = self._tail
        if tail is None:
            return False
        data = b"".join(map(encode_frame, records))
        began = self._clock()
        try:
            written = self._write(tail.file, data)
        except OSError as error:
            self._rest(error.strerror or type(error).__name__)
            return False
        tail.last = ticket
        tail.size += written
        if written < len(data):
            self._rest("the disk is full")
            return False
        if self._clock() - began > SLOW_S:
            self._rest("a write took too long")
        return True

    async def trim(self, stored: int) -> None:
        done = []
        while self._full and self._full[0].last <= stored:
            done.append(self._full.popleft().path)
        is_full = self._tail is not None and self._tail.size >= self._segment_bytes
        wants = (self._tail is None or is_full) and self._clock() >= self._rests_until
        if done or wants:
            try:
                await anyio.to_thread.run_sync(self._turn, done, wants)
            finally:
                self._adopt()

    async def aclose(self, stored: int) -> None:
        """Close the files, and remove those whose records are stored up to that ticket."""
        self._close_tail()
        self._rests_until = float("inf")
        await self.trim(stored)

    def _rest(self, reason: str) -> None:
        logger.warning("the opening log rests for %g s: %s", REST_S, reason)
        self._rests_until = self._clock() + REST_S
        self._close_tail()  # its end may be torn

    def _adopt(self) -> None:
        """Go on in the new file: only now, as a record that no log takes waits for a commit."""
        made, self._made = self._made, None
        if isinstance(made, OSError):
            self._rest(made.strerror or type(made).__name__)
        elif made is not None:
            self._close_tail()
            self._tail = made
            if self._clock() < self._rests_until:
                self._close_tail()

    def _close_tail(self) -> None:
        tail, self._tail = self._tail, None
        if tail is not None:
            os.close(tail.file)
            self._full.append(tail)

    def _turn(self, done: Sequence[Path], wants: bool) -> None:
        """Remove files, and begin a new one where it is wanted; in a thread, beside which records
        are written to the file before."""
        for path in done:
            remove(path)
        if not wants:
            return
        self._count += 1
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._made = _Segment(self._folder / f"{self._boot}-{self._count:06}{LOG_SUFFIX}")
        except OSError as error:
            self._made = error
