"""The contract of every DecisionStore."""

from collections.abc import Sequence

import pytest
from msgspec.structs import replace

from gateway.core.decision_records import (
    DecisionAttempt,
    DecisionCandidate,
    DecisionFilter,
    DecisionRecord,
    MemoryChange,
    describe_session,
)
from gateway.core.events import Timings, Usage
from gateway.core.ports import DecisionStore, SessionStore
from gateway.core.sessions import Session, SessionClosed, SessionOpened
from gateway.core.states import StreamEnd

FAILED = DecisionAttempt(0.25, 12.5, "no_room", "Every model is \u2028 in \x00 use; ' \" é")
RECORD = DecisionRecord(
    id="d1",
    kind="stream",
    source="database",
    requested_model="any",
    rule="listed",
    rule_version=7,
    candidates=(
        DecisionCandidate("a/m", "chosen", "first", "The first.", "failed", (FAILED,)),
        DecisionCandidate("b/m", "next", "able", "It can.", "answered", (DecisionAttempt(13.0),)),
        DecisionCandidate("c/m", "skipped", "model_not_found", "Not there.", "not_asked"),
    ),
    provider="b",
    model="m",
    outcome="answered",
    error=None,
    message=None,
    face="native",
    caller="alice",
    request_id="r",
    stream_id="d1",
    node="n",
    opened_at=1000.25,
    closed_at=1001.5,
    timings=Timings(1.0, 2.0, None, 3.0),
    memory=(MemoryChange(0.5, "eviction", "c/m", "neighbour"), MemoryChange(0.75, "load", "b/m")),
)
OPENED = SessionOpened("s1", "r", "n", "a/m", 1002.0, "openai", "a", "m", "boot", "bob")


def ended(opened: SessionOpened, end: StreamEnd, code: str | None = None) -> SessionClosed:
    return SessionClosed(
        opened.id, "a", "m", end, opened.opened_at + 1, Usage(), Timings(total_ms=1000.0), code
    )


async def ids(store: DecisionStore, wanted: DecisionFilter) -> list[str | None]:
    return [record.id for record in await store.recent(wanted)]


def names(records: Sequence[DecisionRecord]) -> list[str | None]:
    return [record.id for record in records]


async def test_a_decision_comes_back_as_it_was_and_is_written_once(
    decision_store: DecisionStore,
) -> None:
    await decision_store.write([RECORD])
    await decision_store.write([replace(RECORD, outcome="failed"), replace(RECORD, id="d2")])
    await decision_store.write([])
    assert await decision_store.find("d1") == RECORD
    assert names(await decision_store.recent(DecisionFilter())) == ["d2", "d1"]


@pytest.mark.parametrize("decision_id", ["", "d9", "d1' OR '1'='1", "\x00", "d1\ud800"])
async def test_one_that_is_not_there_is_not_found(
    decision_store: DecisionStore, decision_id: str
) -> None:
    await decision_store.write([RECORD])
    assert await decision_store.find(decision_id) is None


async def test_what_has_no_row_is_told_by_the_record_of_its_stream(
    decision_store: DecisionStore, session_store: SessionStore
) -> None:
    end = ended(OPENED, StreamEnd.STOP)
    await session_store.write([OPENED, replace(OPENED, id="d1")], [end])
    await decision_store.write([RECORD])
    assert await decision_store.find("s1") == describe_session(Session(OPENED, end))
    # The row of its own goes before the session of the same id.
    assert await decision_store.find("d1") == RECORD
    assert await ids(decision_store, DecisionFilter()) == ["s1", "d1"]


async def test_filters_choose_among_both(
    decision_store: DecisionStore, session_store: SessionStore
) -> None:
    running = replace(OPENED, id="s2", opened_at=1003.0, caller="")
    broken = replace(OPENED, id="s3", opened_at=1004.0, requested_model="b/m")
    dead = replace(OPENED, id="s4", opened_at=1005.0)
    ends = [
        ended(OPENED, StreamEnd.LENGTH),
        replace(ended(broken, StreamEnd.ERROR, "no_room"), provider="b"),
        ended(dead, StreamEnd.INTERRUPTED),
    ]
    await session_store.write([OPENED, running, broken, dead], ends)
    failed = replace(RECORD, id="d2", opened_at=1001.0, outcome="failed", error="no_room")
    await decision_store.write([RECORD, failed])
    for wanted, expected in (
        (DecisionFilter(), ["s4", "s3", "s2", "s1", "d2", "d1"]),
        (DecisionFilter(limit=2), ["s4", "s3"]),
        (DecisionFilter(outcome="answered"), ["s1", "d1"]),
        (DecisionFilter(outcome="failed"), ["s3", "d2"]),
        (DecisionFilter(outcome="running"), ["s2"]),
        (DecisionFilter(outcome="interrupted"), ["s4"]),
        (DecisionFilter(outcome="planned"), []),
        (DecisionFilter(error="no_room"), ["s3", "d2"]),
        (DecisionFilter(caller="bob"), ["s4", "s3", "s1"]),
        (DecisionFilter(caller=""), ["s2"]),
        (DecisionFilter(provider="b"), ["s3", "d2", "d1"]),
        (DecisionFilter(model="m", requested_model="any"), ["d2", "d1"]),
        (DecisionFilter(since=1001.0, until=1003.0), ["s1", "d2"]),
        (DecisionFilter(requested_model="' OR 1=1 --\x00"), []),
    ):
        assert await ids(decision_store, wanted) == expected, wanted


async def test_the_oldest_are_purged_first_and_no_more_than_asked(
    decision_store: DecisionStore,
) -> None:
    await decision_store.write(
        [replace(RECORD, id=f"d{n}", opened_at=1000.0 + n) for n in range(5)]
    )
    assert await decision_store.purge(1004.0, 3) == 3
    assert await ids(decision_store, DecisionFilter()) == ["d4", "d3"]
    assert await decision_store.purge(1004.0, 3) == 1
    assert await decision_store.purge(1004.0, 3) == 0
