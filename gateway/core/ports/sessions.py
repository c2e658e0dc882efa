"""Records of streams, on their way and at rest."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from gateway.core.events import Usage
from gateway.core.gaps import Gaps
from gateway.core.names import ModelRef
from gateway.core.sessions import Session, SessionClosed, SessionOpened, SessionRecord


class SessionMeter(Protocol):
    """Is told of every request once, at its end, on the event loop; must not block."""

    def stream_ended(self, face: str, closed: SessionClosed, gaps: Gaps) -> None: ...

    def embedded(
        self, face: str, ref: ModelRef | None, usage: Usage | None, error: str, seconds: float
    ) -> None:
        """Count a request for embeddings; without `usage` it failed with the code `error`, or was
        cancelled."""
        ...

    def refused(self, code: str) -> None:
        """Count a request that was not let in."""
        ...


class RouteMeter(Protocol):
    """Is told of each further try of a request, on the event loop; must not block. `provider` is
    the one that failed before, with the code `error`."""

    def retried(self, provider: str, error: str) -> None:
        """Count a request that is sent to the same candidate again."""
        ...

    def fell_back(self, provider: str, error: str) -> None:
        """Count a request that goes to the next candidate."""
        ...


class RecordStore(Protocol):
    """Records that are kept for a while: sessions, decisions."""

    async def purge(self, opened_before: float, limit: int) -> int:
        """Delete the oldest records of what was opened before that time, at most `limit`, in one
        transaction; return how many there were. Raises DatabaseUnavailable."""
        ...


class SessionStore(RecordStore, Protocol):
    """Stream sessions. All methods raise DatabaseUnavailable when the database does not answer."""

    async def write(self, opened: Sequence[SessionOpened], closed: Sequence[SessionClosed]) -> None:
        """Record all of it in one transaction, opened first. Writing a record twice is harmless:
        a session opens once and its first end stays."""
        ...

    async def note_usage(self, used: Mapping[str, Usage]) -> None:
        """Record what open sessions used so far, by their ids, in one transaction. What ended, or
        is not there, is left as it is."""
        ...

    async def interrupt_orphans(self, node: str, closed_at: float, *, boot: str) -> int:
        """Close as INTERRUPTED every open session of `node` that another run of it than `boot`
        opened; return how many there were. They keep what was noted of their usage."""
        ...

    async def beat(self, node: str, boot: str) -> None:
        """Take note that the run `boot` of `node` is alive, by the database's clock."""
        ...

    async def interrupt_expired(self, lease_s: float) -> int:
        """Close as INTERRUPTED every open session of a run, of any node, that was last seen more
        than `lease_s` ago, by the database's clock; return how many there were. Of a run that was
        never seen only those that were opened more than a day ago."""
        ...

    async def recent(self, limit: int) -> Sequence[Session]:
        """Return the newest sessions, newest first."""
        ...

    async def find(self, session_id: str) -> Session | None: ...


class SessionJournal(Protocol):
    """Session records on disk, first in first out, while the database does not take them."""

    @property
    def backlog(self) -> bool:
        """Whether there is anything to read."""
        ...

    @property
    def size_bytes(self) -> int: ...

    async def append(self, records: Sequence[SessionRecord]) -> None:
        """Keep the records; they are safe once this returns. Raises OSError when the disk does not
        take them or the journal is at its bound; then none of them is kept."""
        ...

    async def read(self, limit: int) -> Sequence[SessionRecord]:
        """Return the oldest records, at most `limit`; the same again until `release`."""
        ...

    async def release(self) -> None:
        """Forget what `read` returned last: it is in the database."""
        ...


class SessionLog(Protocol):
    """Session records on their way to the database, safe from the death of this process at once."""

    def append(self, records: Sequence[SessionRecord], ticket: int) -> bool:
        """Keep the records, at once; `ticket` is the last one's, and tickets rise. False when not
        all are kept."""
        ...

    async def trim(self, stored: int) -> None:
        """Forget the records up to that ticket, which others have by now, and make room."""
        ...

    async def aclose(self, stored: int) -> None:
        """Do as `trim` and take no more; what is left is found by the journal of the next run."""
        ...
