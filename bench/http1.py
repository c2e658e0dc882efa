"""HTTP/1.1 messages out of a connection's bytes, for a client and a server that cost little."""

import sys
from collections.abc import Callable

UNTIL_CLOSE = sys.maxsize
"""The length of a body that ends with its connection."""

ENCODED, CHUNKED, LENGTH = b"\r\ntransfer-encoding:", b"chunked", b"\r\ncontent-length:"


class Reader:
    """Tells of each message its head, the body as it comes, and the end. It knows no trailers."""

    def __init__(
        self,
        on_head: Callable[[bytes], None],
        on_body: Callable[[bytes], None],
        on_end: Callable[[], None],
        *,
        without_length: int,
    ) -> None:
        """`without_length` is how long a body is whose head does not say it: 0 in requests,
        UNTIL_CLOSE in replies."""
        self._on_head, self._on_body, self._on_end = on_head, on_body, on_end
        self._without_length = without_length
        self._left = b""
        self._in_body = self._chunked = False
        self._missing = 0

    def feed(self, data: bytes) -> None:
        """Take what was read from the connection. Raises ValueError for what is no HTTP/1.1."""
        rest: bytes | None = self._left + data if self._left else data
        while rest:
            self._left = rest
            if not self._in_body:
                rest = self._take_head(rest)
            elif self._chunked:
                rest = self._take_chunks(rest)
            else:
                rest = self._take_piece(rest)
        if rest is not None:
            self._left = b""

    def close(self) -> None:
        """The connection has ended, and with it a body of no length."""
        if self._in_body and not self._chunked and self._missing > UNTIL_CLOSE // 2:
            self._end()

    def _take_head(self, data: bytes) -> bytes | None:
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return None
        head = data[:end]
        lower = head.lower()
        _, found, encoding = lower.partition(ENCODED)
        self._chunked = bool(found) and CHUNKED in encoding.partition(b"\r\n")[0]
        _, found, length = lower.partition(LENGTH)
        self._missing = int(length.partition(b"\r\n")[0]) if found else self._without_length
        self._in_body = True
        self._on_head(head)
        if not self._chunked and not self._missing:
            self._end()
        return data[end + 4 :]

    def _take_piece(self, data: bytes) -> bytes:
        piece, rest = data[: self._missing], data[self._missing :]
        self._missing -= len(piece)
        self._on_body(piece)
        if not self._missing:
            self._end()
        return rest

    def _take_chunks(self, data: bytes) -> bytes | None:
        """Give all chunks that are whole as one piece; a chunk that is not is waited for."""
        pieces, at, ended = [], 0, False
        while (line_end := data.find(b"\r\n", at)) >= 0:
            size = int(data[at:line_end].partition(b";")[0], 16)
            begin = line_end + 2
            end = begin + size
            if len(data) < end + 2:
                break
            at = end + 2
            if not size:
                ended = True
                break
            pieces.append(data[begin:end])
        if pieces:
            self._on_body(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if ended:
            self._end()
        rest = data[at:]
        if not ended:
            self._left = rest
            return None
        return rest

    def _end(self) -> None:
        self._in_body = False
        self._on_end()
