"""Server-sent events as a client reads them: bytes to the data of each event. Pure.

Source: the HTML standard, "Server-sent events", 9.2.6. Names of events, ids and retry times mean
nothing here and are passed over.
"""

from collections.abc import Iterator

MAX_EVENT_BYTES = 8 * 1024 * 1024

_BOM = b"\xef\xbb\xbf"


class EventTooLong(Exception):
    """A line or an event is longer than MAX_EVENT_BYTES."""


class EventParser:
    """Parses a stream however it is cut; `lines` counts the lines that were whole, comments too."""

    def __init__(self, max_bytes: int = MAX_EVENT_BYTES) -> None:
        self.lines = 0
        self._max_bytes = max_bytes
        self._rest = bytearray()
        self._data: list[bytes] = []
        self._held = 0
        self._owes_line_feed = False

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the data of every event that `chunk` completes; raises EventTooLong."""
        if not chunk:
            return
        ends_in_return = chunk.endswith(b"\r")
        if self._owes_line_feed:
            chunk = chunk.removeprefix(b"\n")  # the line ended with the CR before it
        self._owes_line_feed = ends_in_return
        if b"\r" in chunk:
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = chunk.split(b"\n")
        if lines and self._rest:
            lines[0] = bytes(self._rest + lines[0])
            self._rest.clear()
        for line in lines:
            data = self._read(line)
            if data is not None:
                yield data
        self._rest += rest
        self._require_bounded(len(self._rest))

    def end(self) -> bytes:
        """Return the data of an event that its blank line did not end; it may have been cut."""
        rest, self._rest = bytes(self._rest), bytearray()
        if rest:
            self._read(rest)
        return b"\n".join(self._data)

    def _read(self, line: bytes) -> bytes | None:
        if not self.lines:
            line = line.removeprefix(_BOM)
        self.lines += 1
        if line:
            name, _, value = line.partition(b":")
            if name == b"data":
                self._data.append(value[1:] if value[:1] == b" " else value)
                self._held += len(value) + 1
                self._require_bounded(self._held)
            return None
        if not self._data:
            return None
        data = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
        self._data, self._held = [], 0
        return data

    def _require_bounded(self, size: int) -> None:
        if size > self._max_bytes:
            raise EventTooLong
