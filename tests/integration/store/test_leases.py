"""Sessions of runs that died for good, and of runs that live: in memory and in every database."""

import time

from gateway.core.ports import SessionStore
from gateway.core.sessions import SessionOpened
from gateway.core.states import StreamEnd

LEASE_S = 2.0
"""SQLite's clock has whole seconds: no shorter one could be told from one that is alive."""


def opened(name: str, *, boot: str, at: float | None = None) -> SessionOpened:
    opened_at = time.time() if at is None else at
    return SessionOpened(name, "r", f"node-{boot}", "m", round(opened_at, 3), boot=boot)


async def ends(store: SessionStore) -> dict[str, StreamEnd | None]:
    return {s.opened.id: s.closed and s.closed.end for s in await store.recent(99)}


async def test_a_run_that_was_seen_just_now_keeps_its_sessions(session_store: SessionStore) -> None:
    await session_store.beat("a", "1")
    await session_store.write([opened("s", boot="1")], [])
    assert await session_store.interrupt_expired(60) == 0
    assert await ends(session_store) == {"s": None}


async def test_only_what_the_dead_left_open_is_closed(session_store: SessionStore) -> None:
    """F41: the live one renews its lease all the time."""
    await session_store.beat("dead", "1")
    await session_store.write([opened("of the dead", boot="1")], [])
    count = 0
    while not count:
        await session_store.beat("alive", "2")
        await session_store.write([opened("of the living", boot="2")], [])
        count = await session_store.interrupt_expired(LEASE_S)
    assert count == 1
    assert await ends(session_store) == {
        "of the dead": StreamEnd.INTERRUPTED,
        "of the living": None,
    }
    found = await session_store.find("of the dead")
    assert found is not None and found.closed is not None
    assert abs(found.closed.closed_at - time.time()) < 60
    assert await session_store.interrupt_expired(LEASE_S) == 0


async def test_a_run_that_was_never_seen_has_a_day(session_store: SessionStore) -> None:
    now = time.time()
    sessions = [opened("young", boot="old version"), opened("old", boot="", at=now - 2 * 86_400)]
    await session_store.write(sessions, [])
    assert await session_store.interrupt_expired(60) == 1
    assert await ends(session_store) == {"young": None, "old": StreamEnd.INTERRUPTED}


async def test_a_run_that_comes_back_has_a_lease_again(session_store: SessionStore) -> None:
    await session_store.beat("a", "1")
    await session_store.interrupt_expired(-60)
    await session_store.beat("a", "1")
    await session_store.write([opened("s", boot="1")], [])
    assert await session_store.interrupt_expired(60) == 0
    assert await session_store.interrupt_expired(-60) == 1
