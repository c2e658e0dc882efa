"""Decision records, kept in memory."""

from collections.abc import Sequence

from msgspec.structs import replace

from gateway.core.decision_records import DecisionFilter, DecisionRecord, describe_session
from gateway.core.ports import SessionStore
from gateway.core.sessions import SessionOpened
from gateway.store.sessions import UNKNOWN_NODE
from gateway.testing.sessions import MemorySessionStore


class MemoryDecisionStore:
    """A DecisionStore that forgets everything with the process."""

    def __init__(self, sessions: SessionStore | None = None) -> None:
        self._sessions = sessions or MemorySessionStore()
        self._records: dict[str, DecisionRecord] = {}

    async def write(self, records: Sequence[DecisionRecord]) -> None:
        for record in records:
            assert record.id is not None
            self._records.setdefault(record.id, replace(record, source="database"))

    async def find(self, decision_id: str) -> DecisionRecord | None:
        if decision_id in self._records:
            return self._records[decision_id]
        session = await self._sessions.find(decision_id)
        return describe_session(session) if session else None

    async def recent(self, wanted: DecisionFilter) -> Sequence[DecisionRecord]:
        found = list(self._records.values())
        for session in await self._sessions.recent(2**31):
            if session.opened.id not in self._records and session.opened.node != UNKNOWN_NODE:
                found.append(describe_session(session))
        fitting = [each for each in found if _is_wanted(each, wanted)]
        fitting.sort(key=lambda each: (each.opened_at, each.id), reverse=True)
        return fitting[: wanted.limit]

    async def purge(self, opened_before: float, limit: int) -> int:
        by_age = sorted(self._records.values(), key=lambda record: record.opened_at)
        old = [each.id for each in by_age if each.opened_at < opened_before][:limit]
        for decision_id in old:
            assert decision_id is not None
            del self._records[decision_id]
        return len(old)


def _is_wanted(record: DecisionRecord, wanted: DecisionFilter) -> bool:
    opened = SessionOpened(
        record.id or "",
        record.request_id,
        record.node,
        record.requested_model,
        record.opened_at,
        caller=record.caller,
    )
    return wanted.admits_opening(opened) and wanted.admits(record)
