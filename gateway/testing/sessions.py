"""The records of streams, kept in memory: the store and the journal before it."""

import time
from collections.abc import Callable, Mapping, Sequence

from msgspec.structs import replace

from gateway.core.events import Timings, Usage
from gateway.core.sessions import Session, SessionClosed, SessionOpened, SessionRecord
from gateway.core.states import StreamEnd
from gateway.store.sessions import UNKNOWN_NODE, UNSEEN_S, opening_of
from gateway.store.tables import MAX_ID_LENGTH, clean_text
from gateway.testing.columns import to_microseconds


class MemorySessionStore:
    """A SessionStore that forgets everything with the process."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        """`now` is the database's clock."""
        self._now = now
        self._sessions: dict[str, Session] = {}
        self._noted: dict[str, Usage] = {}
        self._seen: dict[str, float] = {}

    async def write(self, opened: Sequence[SessionOpened], closed: Sequence[SessionClosed]) -> None:
        for opening in opened:
            opening = replace(opening, opened_at=to_microseconds(opening.opened_at))
            known = self._sessions.get(opening.id)
            if known is None:
                self._sessions[opening.id] = Session(opening)
            elif known.opened.node == UNKNOWN_NODE:
                self._sessions[opening.id] = _served_last(replace(known, opened=opening))
        for end in closed:
            end = _as_stored(end)
            known = self._sessions.get(end.id, Session(opening_of(end)))
            if known.closed is None:
                self._sessions[end.id] = _served_last(replace(known, closed=end))

    async def note_usage(self, used: Mapping[str, Usage]) -> None:
        for name, usage in used.items():
            if name in self._sessions and self._sessions[name].closed is None:
                self._noted[name] = usage

    async def interrupt_orphans(self, node: str, closed_at: float, *, boot: str) -> int:
        opened = [s.opened for s in self._sessions.values() if s.closed is None]
        orphans = [o for o in opened if o.node == node and o.boot != boot]
        await self.write([], [self._interrupted(orphan, closed_at) for orphan in orphans])
        return len(orphans)

    async def beat(self, node: str, boot: str) -> None:
        self._seen[boot] = self._now()

    async def interrupt_expired(self, lease_s: float) -> int:
        now = self._now()
        expired = {boot for boot, seen_at in self._seen.items() if seen_at < now - lease_s}
        opened = [s.opened for s in self._sessions.values() if s.closed is None]
        orphans = [
            each
            for each in opened
            if each.boot in expired
            or (each.boot not in self._seen and each.opened_at < now - UNSEEN_S)
        ]
        await self.write([], [self._interrupted(orphan, now) for orphan in orphans])
        for boot in expired:
            del self._seen[boot]
        return len(orphans)

    async def purge(self, opened_before: float, limit: int) -> int:
        by_age = sorted(self._sessions.values(), key=lambda session: session.opened.opened_at)
        old = [s.opened.id for s in by_age if s.opened.opened_at < opened_before][:limit]
        for session_id in old:
            del self._sessions[session_id]
        return len(old)

    async def recent(self, limit: int) -> Sequence[Session]:
        newest = sorted(
            self._sessions.values(), key=lambda s: (s.opened.opened_at, s.opened.id), reverse=True
        )
        return newest[:limit]

    async def find(self, session_id: str) -> Session | None:
        return self._sessions.get(session_id)

    def _interrupted(self, opened: SessionOpened, closed_at: float) -> SessionClosed:
        return SessionClosed(
            id=opened.id,
            provider=opened.provider,
            model=opened.model,
            end=StreamEnd.INTERRUPTED,
            closed_at=closed_at,
            usage=self._noted.get(opened.id, Usage()),
            timings=Timings(),
        )


class MemoryJournal:
    """A SessionJournal that forgets everything with the process."""

    def __init__(self) -> None:
        self._records: list[SessionRecord] = []
        self._read = 0

    @property
    def backlog(self) -> bool:
        return bool(self._records)

    @property
    def size_bytes(self) -> int:
        return len(self._records)

    async def append(self, records: Sequence[SessionRecord]) -> None:
        self._records += records

    async def read(self, limit: int) -> Sequence[SessionRecord]:
        self._read = min(limit, len(self._records))
        return self._records[: self._read]

    async def release(self) -> None:
        del self._records[: self._read]
        self._read = 0


def _as_stored(closed: SessionClosed) -> SessionClosed:
    code = closed.error_code
    return replace(
        closed,
        closed_at=to_microseconds(closed.closed_at),
        error_code=None if code is None else clean_text(code, MAX_ID_LENGTH),
    )


def _served_last(session: Session) -> Session:
    """Return the session as a row shows it: one provider and one model, those of the end."""
    if session.closed is None:
        return session
    provider, model = session.closed.provider, session.closed.model
    return replace(session, opened=replace(session.opened, provider=provider, model=model))
