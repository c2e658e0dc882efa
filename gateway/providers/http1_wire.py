"""HTTP/1.1 as a client reads it: bytes to the head of one reply and the pieces of its body. Pure.

Strict, because a reply that two readers could understand differently may be an attack: whatever
RFC 9112 lets a recipient repair is MalformedReply here. Bounded, whatever the server says.
"""

import re
from collections.abc import Callable

import msgspec

MAX_HEAD_BYTES = 32 * 1024
"""Of a status line and its headers together, and of the trailers after the last chunk."""
MAX_CHUNK_LINE_BYTES = 256
MAX_INTERIM_REPLIES = 8
_MAX_KNOWN_HEADS = 8
_SIZES = [b"%x" % size for size in range(2048)]
"""Of chunks, as they are written: nearly all are of lines that are short."""

_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?")
_HEADER = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):([\t\x20-\x7e\x80-\xff]*)")
_LENGTH = re.compile(r"[0-9]{1,15}")
_CHUNK = re.compile(rb"([0-9a-fA-F]{1,8})(?:[ \t]{0,8};[\t\x20-\x7e\x80-\xff]{0,200})?\r\n")
_CRLF = b"\r\n"
_PROTOCOL = b"HTTP/1."
_BODILESS = (204, 304)


class TransportError(Exception):
    """An exchange with a server failed, whatever the reason. The base of all that is raised here
    and by `http1`."""


class ConnectTimedOut(TransportError):
    """The server did not accept a connection in time."""


class Unreachable(TransportError):
    """Nobody accepts connections at the server's address."""


class StillBusy(TransportError):
    """The server is at as many requests as it may have; of those that were given up it has not yet
    let go."""


class ReplyTimedOut(TransportError):
    """The server was silent for longer than it may be."""


class ConnectionLost(TransportError):
    """The connection ended before the reply did; `has_begun` tells whether any of it came."""

    def __init__(self, has_begun: bool) -> None:
        super().__init__(has_begun)
        self.has_begun = has_begun


class MalformedReply(TransportError):
    """What came is no reply in HTTP/1.1, or one beyond all bounds."""


class ReplyHead(msgspec.Struct, frozen=True):
    """`headers` by their names in lower case; several of one name are joined by commas."""

    status: int
    headers: dict[str, str]

    @property
    def is_encoded(self) -> bool:
        """Whether the body is compressed, or encoded in another way that nobody asked for."""
        return self.headers.get("content-encoding", "").lower() not in ("", "identity")


_Step = Callable[["ReplyParser", bytes, list[bytes]], None]


class KnownHead(msgspec.Struct, frozen=True):
    """A head, and what it says of the body: read by `step`, `left` bytes where it is sized."""

    head: ReplyHead
    keeps_alive: bool
    has_body: bool
    step: _Step
    left: int


class KnownHeads:
    """The heads of one server that were read last: but for their dates they are mostly the same,
    byte for byte."""

    def __init__(self) -> None:
        self._known: dict[bytes, KnownHead] = {}

    def read(self, data: bytes) -> KnownHead:
        """Return what a status line and its headers say; raises MalformedReply."""
        known = self._known.get(data)
        if known is None:
            known = _read_head(data)
            if len(self._known) == _MAX_KNOWN_HEADS:
                self._known.clear()
            self._known[data] = known
        return known


class ReplyParser:
    """Parses one reply, however it is cut. `is_complete` is true from its last byte on, and
    `keeps_alive` tells whether another request may follow on the connection."""

    __slots__ = (
        "_heads",
        "_interim",
        "_left",
        "_owes_line_end",
        "_rest",
        "_step",
        "head",
        "is_complete",
        "keeps_alive",
    )

    def __init__(self, heads: KnownHeads) -> None:
        self.head: ReplyHead | None = None
        self.is_complete = False
        self.keeps_alive = False
        self._heads = heads
        # A plain function: a bound method would tie the parser to itself, work for the collector.
        self._step: _Step = ReplyParser._read_head
        self._rest = b""
        self._left = 0
        self._owes_line_end = False
        self._interim = 0

    def feed(self, data: bytes, body: list[bytes]) -> None:
        """Read on, and append what `data` has of the body to `body`.

        Raises MalformedReply; what came before the mistake is in `body`.
        """
        if self._rest:
            data, self._rest = self._rest + data, b""
        self._step(self, data, body)

    def end(self) -> bool:
        """The connection ended: tell whether the reply is complete, as one without a length is."""
        if self._step is ReplyParser._read_until_close:
            self.is_complete = True
        return self.is_complete

    def _read_head(self, data: bytes, body: list[bytes]) -> None:
        if not data.startswith(_PROTOCOL[: len(data)]):
            raise MalformedReply("it does not begin as HTTP/1 does")
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self._keep(data, MAX_HEAD_BYTES)
            return
        if end > MAX_HEAD_BYTES:
            raise MalformedReply("its head is too long")
        known = self._heads.read(data[:end])
        if known.head.status < 200:
            self._skip_interim(known.head.status)
        else:
            self.head, self.keeps_alive = known.head, known.keeps_alive
            self._step, self._left = known.step, known.left
            if not known.has_body:
                self._complete(b"")
        if rest := data[end + 4 :]:
            self._step(self, rest, body)

    def _skip_interim(self, status: int) -> None:
        """Pass over a reply that only announces the real one (RFC 9110, 15.2)."""
        self._interim += 1
        if status == 101 or self._interim > MAX_INTERIM_REPLIES:
            raise MalformedReply(f"it announces what was not asked for ({status})")

    def _read_sized(self, data: bytes, body: list[bytes]) -> None:
        piece = data[: self._left]
        body.append(piece)
        self._left -= len(piece)
        if not self._left:
            self._complete(data[len(piece) :])

    def _read_until_close(self, data: bytes, body: list[bytes]) -> None:
        self.keeps_alive = False
        body.append(data)

    def _read_chunks(self, data: bytes, body: list[bytes]) -> None:
        if not (self._left or self._owes_line_end):
            # One whole chunk, as the read of a token is, and not the last one.
            found_at = data.find(_CRLF)
            size = len(data) - found_at - 4
            if size > 0 and data[:found_at] == b"%x" % size and data.endswith(_CRLF):
                body.append(data[found_at + 2 : -2])
                return
            if self._read_plain_chunks(data, body):
                return
        at = 0
        while True:
            if self._left:
                piece = data[at : at + self._left]
                if not piece:
                    return
                body.append(piece)
                at += len(piece)
                self._left -= len(piece)
                self._owes_line_end = True
                if self._left:
                    return
            if self._owes_line_end:
                if (line_end := data[at : at + 2]) != _CRLF:
                    if not _CRLF.startswith(line_end):
                        raise MalformedReply("a chunk is longer than it said")
                    self._rest = line_end
                    return
                at += 2
                self._owes_line_end = False
            found = _CHUNK.match(data, at)
            if found is None:
                self._await_chunk(data[at:])
                return
            at = found.end()
            self._left = int(found[1], 16)
            if not self._left:
                self._step = ReplyParser._read_trailers
                self._step(self, data[at:], body)
                return

    def _read_plain_chunks(self, data: bytes, body: list[bytes]) -> bool:
        """Read `data` if it is of whole chunks written as Go does, without a line end in them: the
        bytes of a read nearly always are. Else do nothing and return False."""
        parts = data.split(_CRLF)
        pieces = parts[1::2]
        if len(parts) % 2 == 0 or parts.pop() or not _are_sizes(parts[::2], pieces):
            return False
        if b"" in pieces:
            if pieces.index(b"") < len(pieces) - 1:
                return False
            pieces.pop()
            self._complete(b"")
        body += pieces
        return True

    def _await_chunk(self, line: bytes) -> None:
        if _CRLF in line or len(line) > MAX_CHUNK_LINE_BYTES:
            raise MalformedReply("the size of a chunk is none")
        self._rest = line

    def _read_trailers(self, data: bytes, body: list[bytes]) -> None:
        if data.startswith(_CRLF):
            self._complete(data[2:])
            return
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self._keep(data, MAX_HEAD_BYTES)
            return
        _read_headers(data[:end].split(_CRLF))
        self._complete(data[end + 4 :])

    def _complete(self, excess: bytes) -> None:
        self.is_complete = True
        self._step = ReplyParser._read_excess
        if excess:
            self._step(self, excess, [])

    def _read_excess(self, data: bytes, body: list[bytes]) -> None:
        # Nobody asked for more: whose answer would the next bytes be?
        self.keeps_alive = False

    def _keep(self, rest: bytes, most: int) -> None:
        if len(rest) > most:
            raise MalformedReply("its head is too long")
        self._rest = rest


def _are_sizes(sizes: list[bytes], pieces: list[bytes]) -> bool:
    try:
        return sizes == list(map(_SIZES.__getitem__, map(len, pieces)))
    except IndexError:
        return False


def _read_head(data: bytes) -> KnownHead:
    status_line, *lines = data.split(_CRLF)
    found = _STATUS.fullmatch(status_line)
    if found is None:
        raise MalformedReply("its status line is none")
    head, is_old = ReplyHead(int(found[2]), _read_headers(lines)), found[1] == b"0"
    keeps_alive = not is_old and "close" not in _tokens(head.headers.get("connection", ""))
    if head.status < 200:
        return KnownHead(head, keeps_alive, False, ReplyParser._read_head, 0)
    step, left = _choose_framing(head.headers, is_old=is_old)
    is_empty = head.status in _BODILESS or (step is ReplyParser._read_sized and not left)
    return KnownHead(head, keeps_alive, not is_empty, step, left)


def _choose_framing(headers: dict[str, str], *, is_old: bool) -> tuple[_Step, int]:
    """Decide where the body ends (RFC 9112, 6.3); return how to read it, and a length if known."""
    coding, length = headers.get("transfer-encoding"), headers.get("content-length")
    if coding is not None:
        if coding.lower() != "chunked" or length is not None or is_old:
            raise MalformedReply("where its body ends can be read in two ways")
        return ReplyParser._read_chunks, 0
    if length is None:
        return ReplyParser._read_until_close, 0
    # Two of them are one value with a comma by now.
    if not _LENGTH.fullmatch(length):
        raise MalformedReply("its Content-Length is no number")
    return ReplyParser._read_sized, int(length)


def _read_headers(lines: list[bytes]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        found = _HEADER.fullmatch(line)
        if found is None:
            raise MalformedReply("a header is none")
        name, value = found[1].decode().lower(), found[2].decode("latin-1").strip(" \t")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _tokens(value: str) -> list[str]:
    return [token.strip() for token in value.lower().split(",")]
