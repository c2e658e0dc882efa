"""The contract of SessionStore, on every store."""

from itertools import permutations

import anyio
import pytest

from gateway.core.events import Timings, Usage
from gateway.core.ports import SessionStore
from gateway.core.sessions import Session, SessionClosed, SessionOpened
from gateway.core.states import StreamEnd

NOW = 1_790_000_000.123456


def opened(
    session_id: str = "s1", *, node: str = "a", at: float = NOW, known: bool = True, boot: str = "1"
) -> SessionOpened:
    return SessionOpened(
        id=session_id,
        request_id=f"request-{session_id}",
        node=node,
        requested_model="llama3",
        opened_at=at,
        face="openai",
        provider="ollama" if known else None,
        model="llama3:latest" if known else None,
        boot=boot,
    )


def closed(session_id: str = "s1", end: StreamEnd = StreamEnd.STOP) -> SessionClosed:
    return SessionClosed(
        id=session_id,
        provider="ollama",
        model="llama3:latest",
        end=end,
        closed_at=NOW + 2.5,
        usage=Usage(prompt_tokens=7, completion_tokens=11),
        timings=Timings(queue_ms=1.5, load_ms=2.25, ttft_ms=30.125, total_ms=2500.5),
        error_code="engine_failed" if end is StreamEnd.ERROR else None,
        served_by=("huggingface/demo", "ollama/llama3:latest") if end is StreamEnd.STOP else (),
    )


async def test_a_running_stream_has_no_end(session_store: SessionStore) -> None:
    await session_store.write([opened()], [])
    assert await session_store.find("s1") == Session(opened())


@pytest.mark.parametrize("end", StreamEnd)
async def test_an_ended_stream_reads_back_as_written(
    session_store: SessionStore, end: StreamEnd
) -> None:
    await session_store.write([opened()], [])
    await session_store.write([], [closed(end=end)])
    assert await session_store.find("s1") == Session(opened(), closed(end=end))


async def test_a_stream_that_never_began_to_answer_reads_back_as_written(
    session_store: SessionStore,
) -> None:
    end = SessionClosed("s1", None, None, StreamEnd.CANCELLED, NOW, Usage(), Timings())
    await session_store.write([opened(known=False)], [end])
    assert await session_store.find("s1") == Session(opened(known=False), end)


async def test_times_are_kept_to_the_microsecond(session_store: SessionStore) -> None:
    await session_store.write([opened(at=1_790_000_000.1234567)], [])
    found = await session_store.find("s1")
    assert found is not None
    assert found.opened.opened_at == 1_790_000_000.123457


async def test_an_unknown_session_is_none(session_store: SessionStore) -> None:
    await session_store.write([opened()], [])
    assert await session_store.find("s2") is None


async def test_writing_nothing_is_harmless(session_store: SessionStore) -> None:
    await session_store.write([], [])
    assert await session_store.recent(10) == []


async def test_a_session_opens_once(session_store: SessionStore) -> None:
    await session_store.write([opened()], [])
    await session_store.write([opened(node="b", at=NOW + 1)], [])
    assert await session_store.recent(10) == [Session(opened())]


async def test_the_first_end_stays(session_store: SessionStore) -> None:
    await session_store.write([opened()], [closed(end=StreamEnd.ERROR)])
    await session_store.write([opened()], [closed(end=StreamEnd.STOP)])
    assert await session_store.find("s1") == Session(opened(), closed(end=StreamEnd.ERROR))


async def test_the_first_end_of_one_batch_stays(session_store: SessionStore) -> None:
    ends = [closed(end=StreamEnd.LENGTH), closed(end=StreamEnd.STOP)]
    await session_store.write([opened()], ends)
    assert await session_store.find("s1") == Session(opened(), ends[0])


@pytest.mark.parametrize("order", list(permutations(("open", "close", "close"))))
async def test_the_order_in_which_records_arrive_does_not_matter(
    session_store: SessionStore, order: tuple[str, ...]
) -> None:
    for part in order:
        if part == "open":
            await session_store.write([opened()], [])
        else:
            await session_store.write([], [closed()])
    assert await session_store.recent(10) == [Session(opened(), closed())]


@pytest.mark.parametrize("before", ["nothing", "opening", "end", "both", "interrupted"])
async def test_a_session_that_arrives_whole_is_one_with_what_is_there(
    session_store: SessionStore, before: str
) -> None:
    first = StreamEnd.LENGTH
    if before in ("opening", "both", "interrupted"):
        await session_store.write([opened()], [])
    if before in ("end", "both"):
        await session_store.write([], [closed(end=first)])
    if before == "interrupted":
        await session_store.interrupt_orphans("a", NOW, boot="2")
    await session_store.write([opened("s0"), opened(), opened("s2")], [closed(), closed("s2")])
    found = await session_store.find("s1")
    assert found is not None and found.opened == opened() and found.closed is not None
    expected = {"end": first, "both": first, "interrupted": StreamEnd.INTERRUPTED}
    assert found.closed.end is expected.get(before, StreamEnd.STOP)
    assert await session_store.find("s0") == Session(opened("s0"))
    assert await session_store.find("s2") == Session(opened("s2"), closed("s2"))


async def test_an_end_without_its_opening_is_not_lost(session_store: SessionStore) -> None:
    await session_store.write([], [closed()])
    found = await session_store.find("s1")
    assert found is not None
    assert found.closed == closed()
    assert await session_store.recent(10) == [found]


async def test_only_open_sessions_of_the_own_node_are_interrupted(
    session_store: SessionStore,
) -> None:
    mine = [opened("mine-1"), opened("mine-2"), opened("ended")]
    await session_store.write([*mine, opened("other", node="b")], [closed("ended")])
    assert await session_store.interrupt_orphans("a", NOW + 60, boot="2") == 2
    interrupted = SessionClosed(
        "mine-1", "ollama", "llama3:latest", StreamEnd.INTERRUPTED, NOW + 60, Usage(), Timings()
    )
    assert await session_store.find("mine-1") == Session(opened("mine-1"), interrupted)
    assert await session_store.find("ended") == Session(opened("ended"), closed("ended"))
    assert await session_store.find("other") == Session(opened("other", node="b"))


async def test_the_streams_of_the_present_run_are_no_orphans(session_store: SessionStore) -> None:
    await session_store.write([opened("dead"), opened("alive", boot="2")], [])
    assert await session_store.interrupt_orphans("a", NOW + 60, boot="2") == 1
    assert await session_store.find("alive") == Session(opened("alive", boot="2"))


async def test_the_oldest_are_purged_and_the_limit_holds(session_store: SessionStore) -> None:
    openings = [opened(f"s{age}", at=NOW - age) for age in (4, 1, 3, 2, 0)]
    await session_store.write(openings, [closed("s4")])
    assert await session_store.purge(NOW - 1, 2) == 2
    assert [s.opened.id for s in await session_store.recent(9)] == ["s0", "s1", "s2"]
    assert await session_store.purge(NOW - 1, 2) == 1
    assert await session_store.purge(NOW - 1, 2) == 0
    assert [s.opened.id for s in await session_store.recent(9)] == ["s0", "s1"]


async def test_what_was_noted_of_an_orphan_is_its_usage(session_store: SessionStore) -> None:
    await session_store.write([opened("s1"), opened("s2"), opened("ended")], [closed("ended")])
    await session_store.note_usage({"s1": Usage(7, 1), "s2": Usage(1, 1)})
    await session_store.note_usage(
        {"s1": Usage(7, 3), "ended": Usage(9, 9), "no such": Usage(1, 1)}
    )
    await session_store.note_usage({})
    unended = await session_store.find("s1")
    assert unended is not None and unended.closed is None
    await session_store.interrupt_orphans(opened().node, NOW, boot="another")
    used = {}
    for name in ("s1", "s2", "ended"):
        found = await session_store.find(name)
        assert found is not None and found.closed is not None
        used[name] = found.closed.usage
    assert used == {"s1": Usage(7, 3), "s2": Usage(1, 1), "ended": closed("ended").usage}
    assert await session_store.find("no such") is None


async def test_an_end_replaces_what_was_noted(session_store: SessionStore) -> None:
    await session_store.write([opened()], [])
    await session_store.note_usage({"s1": Usage(99, 99)})
    await session_store.write([], [closed()])
    assert await session_store.find("s1") == Session(opened(), closed())


async def test_orphans_are_interrupted_once_and_stay_so(session_store: SessionStore) -> None:
    await session_store.write([opened()], [])
    assert await session_store.interrupt_orphans("a", NOW, boot="2") == 1
    assert await session_store.interrupt_orphans("a", NOW + 1, boot="3") == 0
    await session_store.write([], [closed()])
    found = await session_store.find("s1")
    assert found is not None and found.closed is not None
    assert (found.closed.end, found.closed.closed_at) == (StreamEnd.INTERRUPTED, NOW)


async def test_the_newest_come_first_and_the_limit_holds(session_store: SessionStore) -> None:
    openings = [opened("old", at=NOW), opened("new", at=NOW + 2), opened("middle", at=NOW + 1)]
    await session_store.write(openings, [])
    recent = await session_store.recent(2)
    assert [session.opened.id for session in recent] == ["new", "middle"]


@pytest.mark.parametrize(
    ("code", "stored"),
    [("a\x00b", "a\ufffdb"), ("a\ud800b", "a\ufffdb"), ("x" * 500, "x" * 127 + "…")],
)
async def test_text_that_no_database_holds_does_not_fail_the_batch(
    session_store: SessionStore, code: str, stored: str
) -> None:
    end = SessionClosed("s1", None, None, StreamEnd.ERROR, NOW, Usage(), Timings(), code)
    await session_store.write([opened(), opened("s2")], [end, closed("s2")])
    found = await session_store.find("s1")
    assert found is not None and found.closed is not None
    assert found.closed.error_code == stored
    assert await session_store.find("s2") == Session(opened("s2"), closed("s2"))


async def test_five_hundred_records_fit_one_batch(session_store: SessionStore) -> None:
    names = [f"s{number:03}" for number in range(500)]
    await session_store.write(
        [opened(name) for name in names], [closed(name) for name in names[::2]]
    )
    recent = await session_store.recent(1000)
    assert sorted(session.opened.id for session in recent) == names
    assert sum(session.closed is not None for session in recent) == 250


async def test_fifty_writers_at_once_lose_nothing(session_store: SessionStore) -> None:
    async def write(name: str) -> None:
        await session_store.write([opened(name)], [])
        await session_store.write([], [closed(name)])

    async with anyio.create_task_group() as tasks:
        for number in range(50):
            tasks.start_soon(write, f"s{number}")
    recent = await session_store.recent(100)
    assert len(recent) == 50
    assert all(session.closed is not None for session in recent)
