"""DecisionLog: what was decided lately, in memory, and what of it waits to be written."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice

import msgspec

from gateway import telemetry
from gateway.core.decision_records import (
    DecisionFilter,
    DecisionKind,
    DecisionRecord,
    describe_decision,
    tells_more_than_session,
)
from gateway.core.ledger import Movement
from gateway.core.sessions import SessionClosed, SessionOpened
from gateway.core.trail import Trail
from gateway.services.bell import Bell

logger = logging.getLogger(__name__)

MAX_KEPT = 2000
"""Decisions whose requests ended; the oldest go first."""
MAX_PENDING = 5000
"""Decisions that wait for the database; more are not written."""


class Decision(msgspec.Struct):
    """What was noted of one request."""

    opened: SessionOpened
    trail: Trail
    kind: DecisionKind
    closed: SessionClosed | None = None

    def describe(self) -> DecisionRecord:
        return describe_decision(self.opened, self.trail, self.closed, self.kind)


class DecisionLog:
    """Is told of every request at its beginning and at its end, on the event loop.

    What the record of a stream tells as well need not be written a second time: most requests
    mean one model, which answers. Only the others are pending.
    """

    def __init__(
        self,
        *,
        max_kept: int = MAX_KEPT,
        max_pending: int = MAX_PENDING,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_kept = max_kept
        self._max_pending = max_pending
        self._clock = clock
        self._known: dict[str, Decision] = {}
        self._ended: deque[str] = deque()
        self._pending: deque[Decision] = deque()
        self.changed = Bell()
        """Rings when there is more to write, or less."""
        self.written = 0
        """Decisions that the database took, since the start."""
        self.lost = 0
        """Those that it will never have."""

    @property
    def pending_count(self) -> int:
        return len(self._pending)

    def begin(self, opened: SessionOpened, kind: DecisionKind) -> Trail:
        """Return where a request is to note what happens to it; tell its end to `end`."""
        trail = Trail(self._clock)
        self._known[opened.id] = Decision(opened, trail, kind)
        return trail

    def end(self, closed: SessionClosed) -> None:
        """The request of that id ended."""
        decision = self._known[closed.id]
        decision.closed = closed
        self._ended.append(closed.id)
        if len(self._ended) > self._max_kept:
            del self._known[self._ended.popleft()]
        # Of embeddings there is no record of a stream.
        if decision.kind == "embedding" or tells_more_than_session(decision.trail):
            self._add(decision)

    def moved(self, what: Movement) -> None:
        """Take note of what was moved in memory for the request whose doing this is; for the
        ledger. What nobody's request caused is nobody's decision."""
        decision = self._known.get(telemetry.decision_id.get())
        if decision is not None and decision.closed is None:
            decision.trail.move(what)

    def __contains__(self, decision_id: object) -> bool:
        return decision_id in self._known

    def find(self, decision_id: str) -> DecisionRecord | None:
        known = self._known.get(decision_id)
        return known.describe() if known else None

    def recent(self, wanted: DecisionFilter) -> list[DecisionRecord]:
        """Return what is here and wanted, newest first."""
        return list(islice(self._matching(wanted), wanted.limit))

    def waiting(self, most: int) -> list[DecisionRecord]:
        """Return the oldest that wait to be written; the same again until `settle`."""
        return [decision.describe() for decision in islice(self._pending, most)]

    def settle(self, count: int, *, is_lost: bool = False) -> None:
        """So many of the oldest are written, or, where that is impossible, lost."""
        for _ in range(count):
            self._pending.popleft()
        if is_lost:
            self.lost += count
        else:
            self.written += count
        self.changed.ring()

    def _add(self, decision: Decision) -> None:
        if len(self._pending) >= self._max_pending:
            if not self.lost:
                logger.error("decisions are not recorded: the database does not take them")
            self.lost += 1
            return
        self._pending.append(decision)
        self.changed.ring()

    def _matching(self, wanted: DecisionFilter) -> Iterator[DecisionRecord]:
        newest = sorted(self._known.values(), key=lambda each: each.opened.opened_at, reverse=True)
        for decision in newest:
            if wanted.admits_opening(decision.opened):
                record = decision.describe()
                if wanted.admits(record):
                    yield record
