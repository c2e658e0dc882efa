"""The heads of requests that passed: who sends the same one again passes again.

Of a head only the length of the body may differ, and nothing of it is parsed here: the same bytes
mean what they meant to the parser and to the checks of the long way, as long as the keys are the
same. What is kept is a seal under a secret of this process, no credential.
"""

import hashlib
import re
import secrets
from collections.abc import Callable
from typing import NamedTuple

from starlette.types import Scope

from gateway.core.keys import Caller
from gateway.http.orders import ReadOrder

HEAD = "gateway.head"
"""Where in the ASGI scope the server of ours puts the Head of a request that came whole."""

MAX_HEADS = 4096
MAX_BODY_BYTES = 32 * 2**10
"""Bodies above it are parsed in a thread, which the long way sees to."""

_LENGTH = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: ([0-9]{1,5})\r\n")
_END = b"\r\n\r\n"

_OF_ONE_REQUEST = frozenset(
    {b"expect", b"origin", b"traceparent", b"transfer-encoding", b"upgrade", b"x-request-id"}
)
"""Headers that mean something to one reply alone, or to how a body comes."""


class Head(NamedTuple):
    """A request's head, cut where the length of its body is told; `total` is what the request has
    of bytes, `body_at` where in them its body begins."""

    before: bytes
    after: bytes
    body_at: int
    total: int


class Passed(NamedTuple):
    """Who sent a head that passed, and how the body behind it is read."""

    caller: Caller
    path: str
    read: ReadOrder


def cut_head(data: bytes) -> Head | None:
    """Return the head that `data` begins with; None for one that is not whole, says no length in
    the usual way, or one that is too large."""
    end = data.find(_END)
    length = _LENGTH.search(data, 0, end + 2) if end > 0 else None
    if length is None or (size := int(length[1])) > MAX_BODY_BYTES:
        return None
    body_at = end + len(_END)
    return Head(data[: length.start(1)], data[length.end(1) : body_at], body_at, body_at + size)


class Heads:
    """Remembers heads, by the address that they came from; the oldest is forgotten."""

    def __init__(self, version: Callable[[], int]) -> None:
        """`version` is another one whenever who may pass has changed."""
        self._version = version
        self._known_for = -1
        self._secret = secrets.token_bytes(32)
        self._passed: dict[bytes, Passed] = {}

    def find(self, peer: str, head: Head) -> Passed | None:
        if self._version() != self._known_for:
            self._passed.clear()
            return None
        return self._passed.get(self._seal(peer, head))

    def learn(self, peer: str, head: Head, passed: Passed) -> None:
        """Take note that `head` just passed."""
        version = self._version()
        if version != self._known_for:
            self._passed.clear()
            self._known_for = version
        if len(self._passed) >= MAX_HEADS:
            del self._passed[next(iter(self._passed))]
        self._passed[self._seal(peer, head)] = passed

    def _seal(self, peer: str, head: Head) -> bytes:
        # The first part ends where a length is told, so two heads never are one here.
        text = b"%b %b%b" % (peer.encode(), head.before, head.after)
        return hashlib.blake2b(text, digest_size=16, key=self._secret).digest()


def is_usual(scope: Scope) -> bool:
    """Tell whether a request asks nothing of how it is answered."""
    names = [name for name, _ in scope["headers"]]
    connection = [value.lower() for name, value in scope["headers"] if name == b"connection"]
    return bool(
        scope["http_version"] == "1.1"
        and not scope["root_path"]
        and names.count(b"content-length") == 1
        and _OF_ONE_REQUEST.isdisjoint(names)
        and connection in ([], [b"keep-alive"])
    )
