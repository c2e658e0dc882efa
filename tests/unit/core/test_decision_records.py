"""What a decision says of a request: who was asked, who was not, and why."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.core.decision_records import (
    OUTCOMES,
    DecisionRecord,
    describe_decision,
    describe_plan,
    describe_session,
    ends_of,
    outcome_of,
    tells_more_than_session,
)
from gateway.core.errors import ModelNotFound, NoRoom, ProviderUnavailable
from gateway.core.events import Timings, Usage
from gateway.core.ledger import Movement
from gateway.core.names import ModelRef
from gateway.core.plan import Considered, Plan
from gateway.core.routing import Route
from gateway.core.sessions import Session, SessionClosed, SessionOpened
from gateway.core.states import StreamEnd
from gateway.core.trail import Trail

NAMES = ("a", "b", "c")
REFS = tuple(ModelRef(name, "m") for name in NAMES)
NEVER = Considered("d/m", "skipped", "d/m does not support images.", "unsupported_capability")
ABLE = [
    Considered(str(ref), "next" if place else "chosen", "Able.", "able")
    for place, ref in enumerate(REFS)
]
CHAIN = Plan(
    "any",
    "listed",
    tuple(Route(ref, None) for ref in REFS),
    (*ABLE, NEVER),
    rule_version=7,
)
PLAIN = Plan(
    "a/m", "name", (Route(REFS[0], None),), (Considered("a/m", "chosen", "It is.", "name"),)
)
OPENED = SessionOpened("s1", "r1", "n", "any", 1000.5, face="openai", caller="k1")


class Steps:
    """A clock that every look turns on by 10 ms."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.01
        return self.now


def trail_of(plan: Plan | None, *places: int, failing: int = 0) -> Trail:
    """Return a trail that asked those places of the plan, of which the first so many failed."""
    trail = Trail(Steps())
    trail.plan = plan
    for number, place in enumerate(places):
        trail.ask(place)
        if number < failing:
            trail.fail(ProviderUnavailable("a", "Nobody is there."))
    return trail


def closed(end: StreamEnd, code: str | None = None) -> SessionClosed:
    return SessionClosed("s1", "a", "m", end, 1001.5, Usage(), Timings(total_ms=1000.0), code)


def test_a_chain_tells_who_failed_who_answered_and_who_was_not_needed() -> None:
    trail = trail_of(CHAIN, 0, 0, 1, failing=2)
    record = describe_decision(OPENED, trail, closed(StreamEnd.STOP), "stream")
    assert [each.outcome for each in record.candidates] == [
        "failed", "answered", "not_asked", "not_asked",
    ]  # fmt: skip
    assert [each.error for each in record.candidates[0].attempts] == ["provider_unavailable"] * 2
    assert record.candidates[0].attempts[1].at_ms > record.candidates[0].attempts[0].at_ms > 0
    assert record.candidates[0].attempts[0].failed_after_ms == 10.0
    assert record.candidates[3].code == "unsupported_capability"
    assert (record.provider, record.model, record.outcome) == ("b", "m", "answered")
    assert (record.rule, record.rule_version, record.caller) == ("listed", 7, "k1")


def test_a_failure_is_told_in_the_words_of_the_last_who_was_asked() -> None:
    trail = trail_of(CHAIN, 0, failing=1)
    trail.ask(1)
    trail.fail(NoRoom("All full."))
    record = describe_decision(OPENED, trail, closed(StreamEnd.ERROR, "no_room"), "stream")
    assert (record.outcome, record.error, record.message) == ("failed", "no_room", "All full.")


def test_a_name_that_nobody_has_is_told_with_its_reason() -> None:
    error = ModelNotFound("nobody")
    skipped = Considered("nobody", "skipped", error.message, error.code)
    trail = trail_of(Plan("nobody", "name", (), (skipped,), error=error))
    record = describe_decision(OPENED, trail, closed(StreamEnd.ERROR, "model_not_found"), "stream")
    assert (record.provider, record.error) == (None, "model_not_found")
    assert record.message == "There is no model 'nobody'."
    assert record.candidates[0].verdict == "skipped"


def test_a_request_that_runs_has_no_end_yet() -> None:
    record = describe_decision(OPENED, trail_of(CHAIN, 0), None, "stream")
    assert (record.outcome, record.closed_at, record.timings) == ("running", None, None)
    assert record.candidates[0].outcome == "asked"


def test_a_dry_run_asks_nobody() -> None:
    record = describe_plan(CHAIN, face="native", caller="k1", node="n", at=5.0)
    assert (record.id, record.kind, record.outcome) == (None, "dry_run", "planned")
    assert {each.outcome for each in record.candidates} == {"not_asked"}
    assert (record.provider, record.model) == ("a", "m")


def test_only_who_means_one_model_that_was_asked_once_is_told_by_his_session() -> None:
    assert not tells_more_than_session(trail_of(PLAIN, 0))
    assert not tells_more_than_session(trail_of(replace(PLAIN, rule="alias"), 0))
    assert tells_more_than_session(trail_of(PLAIN, 0, failing=1))
    assert tells_more_than_session(trail_of(PLAIN, 0, 0, failing=1))
    assert tells_more_than_session(trail_of(CHAIN, 0))
    loading = trail_of(PLAIN, 0)
    loading.move(Movement(REFS[0]))
    assert tells_more_than_session(loading)
    assert tells_more_than_session(trail_of(None))


@given(end=st.sampled_from([None, *(end for end in StreamEnd if end is not StreamEnd.ERROR)]))
def test_a_session_tells_of_a_plain_request_what_memory_tells(end: StreamEnd | None) -> None:
    trail = trail_of(PLAIN, 0)
    ended = closed(end) if end else None
    opened = SessionOpened("s1", "r1", "n", "a/m", 1000.5, provider="a", model="m", caller="k1")
    assert not tells_more_than_session(trail)
    mine = describe_decision(opened, trail, ended, "stream")
    theirs = describe_session(Session(opened, ended))

    def facts(record: DecisionRecord) -> tuple[object, ...]:
        [candidate] = record.candidates
        return (
            *(record.id, record.requested_model, record.provider, record.model, record.outcome),
            *(record.error, record.caller, record.opened_at, record.closed_at, record.timings),
            *(candidate.model, candidate.verdict, candidate.outcome),
        )

    assert facts(mine) == facts(theirs)


@given(
    st.lists(st.sampled_from(range(3)), max_size=6),
    st.integers(0, 6),
    st.sampled_from([None, *StreamEnd]),
)
def test_every_asking_is_told_once_and_nobody_answers_who_was_not_asked(
    places: list[int], failing: int, end: StreamEnd | None
) -> None:
    trail = trail_of(CHAIN, *places, failing=failing)
    record = describe_decision(OPENED, trail, closed(end) if end else None, "stream")
    assert sum(len(each.attempts) for each in record.candidates) == len(places)
    assert [each.model for each in record.candidates] == [each.model for each in CHAIN.considered]
    for place, each in enumerate(record.candidates):
        assert (each.outcome == "not_asked") == (place not in places)
        assert each.outcome != "answered" or record.outcome == "answered"


def test_a_record_of_a_gateway_that_knew_nothing_of_loads_is_read() -> None:
    record = describe_decision(OPENED, trail_of(CHAIN, 0), closed(StreamEnd.STOP), "stream")
    old = msgspec.to_builtins(record)
    del old["memory"]
    assert msgspec.convert(old, DecisionRecord) == record


def test_each_end_is_one_outcome_and_is_found_by_it() -> None:
    for end in StreamEnd:
        assert end in ends_of(outcome_of(end))
    assert sum(len(ends_of(outcome)) for outcome in OUTCOMES) == len(StreamEnd)
