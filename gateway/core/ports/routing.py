"""Decisions and rules of routing at rest."""

from collections.abc import Callable, Sequence
from typing import Protocol

from gateway.core.decision_records import DecisionFilter, DecisionRecord
from gateway.core.ports.sessions import RecordStore
from gateway.core.rules import RuleDraft, StoredRule


class DecisionStore(RecordStore, Protocol):
    """Why requests went where they went. What is not written here is told by the records of
    streams, as far as they know it. All methods raise DatabaseUnavailable."""

    async def write(self, records: Sequence[DecisionRecord]) -> None:
        """Record all of it in one transaction. Writing a record twice is harmless."""
        ...

    async def find(self, decision_id: str) -> DecisionRecord | None: ...

    async def recent(self, wanted: DecisionFilter) -> Sequence[DecisionRecord]:
        """Return the decisions that are wanted, newest first."""
        ...


class RuleStore(Protocol):
    """Aliases and virtual models that were made at run time. All methods raise
    DatabaseUnavailable."""

    async def put(
        self,
        draft: RuleDraft,
        check: Callable[[Sequence[StoredRule]], None],
        *,
        expected: int | None,
        at: float,
        by: str,
    ) -> StoredRule:
        """Insert or replace a rule. `check` is given all rules there are and raises what speaks
        against it; nobody else writes meanwhile. Raises RouteChanged unless the rule has the
        version `expected` (0: there is none; None: any)."""
        ...

    async def remove(self, name: str, *, expected: int | None) -> bool:
        """Return whether there was such a rule; raises RouteChanged as `put` does."""
        ...

    async def all(self) -> Sequence[StoredRule]:
        """Return every rule, by name."""
        ...

    async def stamp(self) -> int:
        """Return what differs after every change."""
        ...
