"""Why a request went where it went, as a person reads it: built from what was noted. Pure."""

from collections.abc import Sequence
from typing import Literal, get_args

import msgspec
from msgspec.structs import replace

from gateway.core.errors import InvalidRequest
from gateway.core.events import Timings
from gateway.core.ledger import EvictionReason
from gateway.core.plan import Considered, Plan, Verdict
from gateway.core.sessions import Session, SessionClosed, SessionOpened
from gateway.core.states import StreamEnd
from gateway.core.trail import Attempt, Move, Trail

DecisionKind = Literal["stream", "embedding", "dry_run"]
Outcome = Literal["planned", "running", "answered", "failed", "cancelled", "interrupted"]
Fate = Literal["answered", "asked", "failed", "not_asked"]
Source = Literal["memory", "database", "session"]

OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
MAX_LISTED = 200


class DecisionAttempt(msgspec.Struct, frozen=True):
    """One asking: milliseconds after the request was accepted, and how long until it failed;
    `error` is a code. Without one it answered, or is being asked."""

    at_ms: float
    failed_after_ms: float | None = None
    error: str | None = None
    message: str | None = None


class DecisionCandidate(msgspec.Struct, frozen=True):
    """One model that might have answered: its place, why it has it, and what became of it."""

    model: str
    verdict: Verdict
    code: str
    reason: str
    outcome: Fate
    attempts: tuple[DecisionAttempt, ...] = ()


class MemoryChange(msgspec.Struct, frozen=True):
    """What the request did to the models in memory, milliseconds after it was accepted. `reason` is
    an eviction's: `load` for a model of the same provider, `neighbour` for one of another."""

    at_ms: float
    change: Literal["load", "eviction"]
    model: str
    reason: EvictionReason | None = None


class DecisionRecord(msgspec.Struct, frozen=True):
    """The decision about one request. A stream's has the stream's id, a dry run's none.

    `rule` is the order of the virtual model that was asked for, "alias", or "name"; `rule_version`
    is 0 for a rule of the configuration and None for a plain name. `provider` and `model` are who
    was asked last. `caller` is the id of a key. Times are Unix seconds.
    """

    id: str | None
    kind: DecisionKind
    source: Source
    requested_model: str
    rule: str | None
    rule_version: int | None
    candidates: tuple[DecisionCandidate, ...]
    provider: str | None
    model: str | None
    outcome: Outcome
    error: str | None
    message: str | None
    face: str
    caller: str
    request_id: str
    stream_id: str | None
    node: str
    opened_at: float
    closed_at: float | None
    timings: Timings | None
    memory: tuple[MemoryChange, ...] = ()


class DecisionFilter(msgspec.Struct, frozen=True):
    """Which decisions are wanted, newest first; None is any. `since` and `until` are Unix seconds,
    the first included and the second not."""

    requested_model: str | None = None
    provider: str | None = None
    model: str | None = None
    outcome: Outcome | None = None
    error: str | None = None
    caller: str | None = None
    since: float | None = None
    until: float | None = None
    limit: int = 50

    def admits_opening(self, opened: SessionOpened) -> bool:
        """Tell whether what is known at the beginning fits."""
        return (
            self.requested_model in (None, opened.requested_model)
            and self.caller in (None, opened.caller)
            and (self.since is None or opened.opened_at >= self.since)
            and (self.until is None or opened.opened_at < self.until)
        )

    def admits(self, record: DecisionRecord) -> bool:
        """Tell whether what only the record knows fits, too."""
        return (
            self.provider in (None, record.provider)
            and self.model in (None, record.model)
            and self.outcome in (None, record.outcome)
            and self.error in (None, record.error)
        )


def require_limit(limit: int, param: str = "limit") -> int:
    """Return how many to list; raises InvalidRequest when that is out of range."""
    if not 1 <= limit <= MAX_LISTED:
        raise InvalidRequest(f"'{param}' must be from 1 to {MAX_LISTED}.", param=param)
    return limit


def tells_more_than_session(trail: Trail) -> bool:
    """Tell whether the record of the stream alone would not tell this decision whole."""
    plan = trail.plan
    is_plain = plan is not None and plan.rule in ("name", "alias") and plan.error is None
    is_answered = len(trail.attempts) == 1 and trail.attempts[0].code is None
    return not (is_plain and is_answered and not trail.moves)


def describe_decision(
    opened: SessionOpened, trail: Trail, closed: SessionClosed | None, kind: DecisionKind
) -> DecisionRecord:
    """Return the record of a request, so far if it has not ended."""
    plan = trail.plan
    last = trail.attempts[-1] if trail.attempts else None
    ref = plan.routes[last.place].ref if plan and last else None
    outcome = outcome_of(closed.end if closed else None)
    has_failed = outcome == "failed"
    said = (last.message if last else None) or (plan.error.message if plan and plan.error else None)
    return DecisionRecord(
        id=opened.id,
        kind=kind,
        source="memory",
        requested_model=opened.requested_model,
        rule=plan.rule if plan else None,
        rule_version=plan.rule_version if plan else None,
        candidates=_candidates(plan, trail, outcome) if plan else (),
        provider=ref.provider if ref else None,
        model=ref.qualified_model if ref else None,
        outcome=outcome,
        error=closed.error_code if closed else None,
        message=said if has_failed else None,
        face=opened.face,
        caller=opened.caller,
        request_id=opened.request_id,
        stream_id=opened.id if kind == "stream" else None,
        node=opened.node,
        opened_at=round(opened.opened_at, 6),
        closed_at=round(closed.closed_at, 6) if closed else None,
        timings=_rounded(closed.timings) if closed else None,
        memory=tuple(_change(each, trail) for each in trail.moves),
    )


def describe_plan(plan: Plan, *, face: str, caller: str, node: str, at: float) -> DecisionRecord:
    """Return what would be decided: the record of a dry run."""
    first = plan.routes[0].ref if plan.routes else None
    return DecisionRecord(
        id=None,
        kind="dry_run",
        source="memory",
        requested_model=plan.asked,
        rule=plan.rule,
        rule_version=plan.rule_version,
        candidates=tuple(_candidate(each, "not_asked", ()) for each in plan.considered),
        provider=first.provider if first else None,
        model=first.qualified_model if first else None,
        outcome="failed" if plan.error else "planned",
        error=plan.error.code if plan.error else None,
        message=plan.error.message if plan.error else None,
        face=face,
        caller=caller,
        request_id="",
        stream_id=None,
        node=node,
        opened_at=round(at, 6),
        closed_at=None,
        timings=None,
    )


def describe_session(session: Session) -> DecisionRecord:
    """Return the decision about a stream as far as its record tells it: enough for a request that
    meant one model, which answered. Of others it may be all that is left after a crash."""
    opened, closed = session.opened, session.closed
    outcome = outcome_of(closed.end if closed else None)
    return DecisionRecord(
        id=opened.id,
        kind="stream",
        source="session",
        requested_model=opened.requested_model,
        rule=None,
        rule_version=None,
        candidates=_served(opened, closed, outcome),
        provider=opened.provider,
        model=opened.model,
        outcome=outcome,
        error=closed.error_code if closed else None,
        message=None,
        face=opened.face,
        caller=opened.caller,
        request_id=opened.request_id,
        stream_id=opened.id,
        node=opened.node,
        opened_at=opened.opened_at,
        closed_at=closed.closed_at if closed else None,
        timings=_rounded(closed.timings) if closed else None,
    )


def outcome_of(end: StreamEnd | None) -> Outcome:
    """Return how a request went that ended like this; None: it has not."""
    if end is None:
        return "running"
    return _OUTCOMES.get(end, "answered")


def ends_of(outcome: Outcome) -> Sequence[StreamEnd]:
    """Return the ends that are this outcome; those of "running" are none."""
    if outcome in ("running", "planned"):
        return ()
    return [end for end in StreamEnd if outcome_of(end) == outcome]


_OUTCOMES: dict[StreamEnd, Outcome] = {
    StreamEnd.ERROR: "failed",
    StreamEnd.CANCELLED: "cancelled",
    StreamEnd.INTERRUPTED: "interrupted",
}


def _candidates(plan: Plan, trail: Trail, outcome: Outcome) -> tuple[DecisionCandidate, ...]:
    asked: dict[int, list[Attempt]] = {}
    for attempt in trail.attempts:
        asked.setdefault(attempt.place, []).append(attempt)
    return tuple(
        _candidate(each, _fate(asked.get(place, []), outcome), _times(asked.get(place, []), trail))
        for place, each in enumerate(plan.considered)
    )


def _candidate(
    considered: Considered, fate: Fate, attempts: tuple[DecisionAttempt, ...]
) -> DecisionCandidate:
    return DecisionCandidate(
        considered.model, considered.verdict, considered.code, considered.reason, fate, attempts
    )


def _fate(attempts: Sequence[Attempt], outcome: Outcome) -> Fate:
    if not attempts:
        return "not_asked"
    if attempts[-1].code is not None:
        return "failed"
    return "answered" if outcome == "answered" else "asked"


def _times(attempts: Sequence[Attempt], trail: Trail) -> tuple[DecisionAttempt, ...]:
    return tuple(
        DecisionAttempt(
            _ms(each.began_at - trail.began_at),
            None if each.failed_at is None else _ms(each.failed_at - each.began_at),
            each.code,
            each.message,
        )
        for each in attempts
    )


def _change(move: Move, trail: Trail) -> MemoryChange:
    ref, reason = move.what.ref, move.what.reason
    at_ms = _ms(move.at - trail.began_at)
    return MemoryChange(at_ms, "eviction" if reason else "load", str(ref), reason)


def _served(
    opened: SessionOpened, closed: SessionClosed | None, outcome: Outcome
) -> tuple[DecisionCandidate, ...]:
    if opened.provider is None or opened.model is None:
        return ()
    error = closed.error_code if closed else None
    fate: Fate = "failed" if error else "answered" if outcome == "answered" else "asked"
    name, said = f"{opened.provider}/{opened.model}", "It is what the stream's record names."
    return (DecisionCandidate(name, "chosen", "session", said, fate),)


def _rounded(timings: Timings) -> Timings:
    """Return milliseconds with three decimals: more would only claim to be exact."""
    ttft_ms = timings.ttft_ms
    return replace(
        timings,
        queue_ms=_round(timings.queue_ms),
        load_ms=_round(timings.load_ms),
        ttft_ms=None if ttft_ms is None else _round(ttft_ms),
        total_ms=_round(timings.total_ms),
    )


def _ms(seconds: float) -> float:
    return _round(seconds * 1000)


def _round(ms: float) -> float:
    return round(ms, 3)
