"""What a connection may do before there is a request: how many may be open, how long a request's
head may take. uvicorn bounds neither.

Every connection takes a file descriptor, and so may the request on it, upstream. A gateway that has
none left can neither serve nor record: so it refuses before that, and says so.
"""

import logging
import resource
from collections import Counter

import msgspec

from gateway.core.errors import Overloaded
from gateway.core.hosts import is_loopback
from gateway.core.turns import Turns
from gateway.http.encoding import encode_json
from gateway.http.errors import native_error
from gateway.problems import describe

logger = logging.getLogger(__name__)

RESERVED_FILES = 128
"""File descriptors for the database, the journal, models and the like."""
HEAD_BYTES = 64 * 2**10
MAX_FILES = 2**20


class ConnectionLimits(msgspec.Struct, frozen=True):
    """`most_of_peer`: of one address that is not this machine's; 0: as many as there may be.
    `head_s` is how long a new connection, or the head of a request, may take."""

    most: int
    most_of_peer: int = 0
    head_s: float = 10.0


class ConnectionGuard:
    """Counts the open connections of one server."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self.count = 0
        self.turns = Turns()
        self._of_peer: Counter[str] = Counter()
        self._is_full = False

    def enter(self, peer: str) -> bool:
        """Count one more; False when that is too many: then it is not counted."""
        most = self.limits.most_of_peer
        of_peer = most and not is_loopback(peer) and self._of_peer[peer] >= most
        if of_peer or self.count >= self.limits.most:
            if not self._is_full:
                logger.warning("connections are refused: %d are open", self.count)
            self._is_full = True
            return False
        self._of_peer[peer] += 1
        self.count += 1
        return True

    def leave(self, peer: str) -> None:
        self.count -= 1
        # Not at once: one that comes and goes at the bound would be logged each time.
        self._is_full = self._is_full and self.count > 0.9 * self.limits.most
        self._of_peer[peer] -= 1
        if not self._of_peer[peer]:
            del self._of_peer[peer]


def raise_file_limit() -> None:
    """Take as many file descriptors as the system lets this process have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def most_connections() -> int:
    """Return how many connections leave enough file descriptors for what is done on them."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = MAX_FILES if soft == resource.RLIM_INFINITY else soft
    return max(16, (files - RESERVED_FILES) // 2)


def refusal() -> bytes:
    """Return the reply for a connection that is one too many."""
    problem = describe(Overloaded("Too many connections are open."))
    body = encode_json({"error": native_error(problem)})
    return (
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
        b"Retry-After: 1\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    )
