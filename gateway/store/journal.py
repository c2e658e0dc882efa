"""The journal: session records on disk while the database does not take them.

A folder of numbered segments, each an append-only file of frames: length and CRC-32 of the payload
(two little-endian 32-bit numbers), then the record as msgpack. What `append` returned for is
synced, so it survives a power cut. A segment is removed when all of it is in the database. Nothing
is ever appended to what an earlier process wrote: its last frame may be torn. The logs of earlier
runs (`open_log.py`) are read like segments, after them.

Knows no database: services/recorder.py decides what goes in and when it comes out.
"""

import errno
import logging
import os
import struct
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec

from gateway.core.sessions import SessionRecord
from gateway.store.tables import MAX_MODEL_LENGTH, clean_text

logger = logging.getLogger(__name__)

SEGMENT_BYTES = 8 * 2**20
MAX_FRAME_BYTES = 2**16
"""More than any record has: its texts are bounded. A greater length is damage."""

_PLAIN_BYTES = 2**10
"""A record that takes no more has no text that is too long."""
_READ_BYTES = 4 * MAX_FRAME_BYTES
_HEADER = struct.Struct("<II")
_SUFFIX = ".journal"
LOG_SUFFIX = ".log"
"""Of the files of opening logs in the same folder."""
_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[SessionRecord] = msgspec.msgpack.Decoder(SessionRecord)


class _Segment:
    """One file: `size` bytes of it are synced, `read` bytes given out, `offset` bytes done with."""

    def __init__(self, path: Path, size: int = 0) -> None:
        self.path = path
        self.size = size
        self.read = 0
        self.offset = 0


class FileJournal:
    """A core.ports.SessionJournal in `folder`, for one process and one event loop.

    `append` may run beside `read` and `release`; these two are one reader's.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int,
        segment_bytes: int = SEGMENT_BYTES,
        sync: Callable[[int], None] = os.fsync,
    ) -> None:
        self.folder = folder
        self._max_bytes = max_bytes
        self._segment_bytes = min(segment_bytes, max_bytes)
        self._sync = sync
        self._segments: deque[_Segment] = deque()
        self._tail: _Segment | None = None  # the one that is appended to
        self._next_number = 1
        self._changing = anyio.Lock()

    async def open(self) -> None:
        """Find what an earlier process left. Raises OSError when the folder cannot be read."""
        found = await anyio.to_thread.run_sync(_scan, self.folder)
        self._segments.extend(_Segment(path, size) for path, size in found)
        numbers = [int(path.stem) for path, _ in found if path.suffix == _SUFFIX]
        self._next_number = max(numbers, default=0) + 1

    @property
    def backlog(self) -> bool:
        return bool(self._segments)

    @property
    def size_bytes(self) -> int:
        return sum(segment.size for segment in self._segments)

    async def append(self, records: Sequence[SessionRecord]) -> None:
        data = b"".join(map(encode_frame, records))
        async with self._changing:
            if self.size_bytes + len(data) > self._max_bytes:
                raise OSError(errno.EFBIG, f"The journal holds its {self._max_bytes} bytes")
            tail = self._tail or self._new_segment()
            try:
                await anyio.to_thread.run_sync(self._write, tail, data)
            except OSError:
                self._tail = None  # its end may be torn now: the next goes to a new file
                raise
            is_new = tail.size == 0
            tail.size += len(data)
            if is_new:
                self._segments.append(tail)
            self._tail = tail if tail.size < self._segment_bytes else None

    async def read(self, limit: int) -> list[SessionRecord]:
        while self._segments:
            segment = self._segments[0]
            try:
                data = await anyio.to_thread.run_sync(_read, segment)
            except OSError as error:
                # It stays on the disk for the next start; what follows must not wait for it.
                logger.error("the journal's %s cannot be read: %s", segment.path, error)
                await self._abandon(segment)
                continue
            records, used = _decode(data, limit)
            if used:
                segment.read = segment.offset + used
                return records
            logger.warning(
                "%d bytes at the end of the journal's %s are no whole record",
                segment.size - segment.offset,
                segment.path.name,
            )
            await self._abandon(segment)
            await anyio.to_thread.run_sync(remove, segment.path)
        return []

    async def release(self) -> None:
        if not self._segments:
            return
        segment = self._segments[0]
        segment.offset = max(segment.offset, segment.read)
        async with self._changing:  # an append makes it longer
            if segment.offset < segment.size:
                return
            self._forget(segment)
            await anyio.to_thread.run_sync(remove, segment.path)

    async def _abandon(self, segment: _Segment) -> None:
        async with self._changing:
            self._forget(segment)

    def _forget(self, segment: _Segment) -> None:
        self._segments.popleft()
        if segment is self._tail:
            self._tail = None

    def _new_segment(self) -> _Segment:
        number, self._next_number = self._next_number, self._next_number + 1
        return _Segment(self.folder / f"{number:08}{_SUFFIX}")

    def _write(self, segment: _Segment, data: bytes) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
        if segment.size == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            flags |= os.O_CREAT | os.O_EXCL
        file = os.open(segment.path, flags, 0o600)
        try:
            _write_all(file, data)
            self._sync(file)
            if segment.size == 0:
                _sync_folder(self.folder, self._sync)
        except OSError:
            _undo(file, segment)
            raise
        finally:
            os.close(file)


def encode_frame(record: SessionRecord) -> bytes:
    try:
        payload = _ENCODER.encode(record)
    except UnicodeEncodeError:
        payload = b""
    if not payload or len(payload) > _PLAIN_BYTES:
        payload = _ENCODER.encode(_storable(record))
    return _HEADER.pack(len(payload), zlib.crc32(payload)) + payload


def _storable(record: SessionRecord) -> SessionRecord:
    """Return the record with its texts bounded and clean, as the database would have them."""
    texts: dict[str, Any] = {
        name: clean_text(value, MAX_MODEL_LENGTH)
        for name in record.__struct_fields__
        if type(value := getattr(record, name)) is str
    }
    return msgspec.structs.replace(record, **texts)


def _decode(data: bytes, limit: int) -> tuple[list[SessionRecord], int]:
    """Return at most `limit` records and the bytes that they took; ends at the first bad frame."""
    records: list[SessionRecord] = []
    used = 0
    while len(records) < limit and used + _HEADER.size <= len(data):
        length, checksum = _HEADER.unpack_from(data, used)
        payload = data[used + _HEADER.size : used + _HEADER.size + length]
        if length > MAX_FRAME_BYTES or len(payload) < length or zlib.crc32(payload) != checksum:
            break
        used += _HEADER.size + length
        try:
            records.append(_DECODER.decode(payload))
        except msgspec.DecodeError as error:
            # Whole, but not of this version: no later version of this process could read it.
            logger.error("a record of the journal is of another version: %s", error)
    return records, used


def _read(segment: _Segment) -> bytes:
    with segment.path.open("rb") as file:
        file.seek(segment.offset)
        return file.read(min(_READ_BYTES, segment.size - segment.offset))


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _undo(file: int, segment: _Segment) -> None:
    """Take back what a failed append left, as far as the disk lets us; a reader stops before it."""
    try:
        if segment.size:
            os.ftruncate(file, segment.size)
        else:
            segment.path.unlink()
    except OSError as error:
        logger.warning("%s keeps a torn end: %s", segment.path, error)


def remove(path: Path) -> None:
    """Remove a file of the journal if that can be done."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        # Harmless: what is replayed again at the next start is in the database already.
        logger.warning("%s cannot be removed: %s", path, error)


def _sync_folder(folder: Path, sync: Callable[[int], None]) -> None:
    """Make the name of a new file durable, too."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        sync(file)
    finally:
        os.close(file)


def _scan(folder: Path) -> list[tuple[Path, int]]:
    """Return path and size of each segment, the oldest first, and of each log; blocking."""
    if not folder.is_dir():
        return []
    files = sorted(folder.iterdir())
    segments = [file for file in files if file.suffix == _SUFFIX and file.stem.isdigit()]
    segments.sort(key=lambda file: int(file.stem))
    logs = [file for file in files if file.suffix == LOG_SUFFIX]
    return [(file, file.stat().st_size) for file in (*segments, *logs)]
