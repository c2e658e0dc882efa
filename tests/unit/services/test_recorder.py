from collections.abc import Sequence

import anyio
import pytest

from gateway.core.errors import DatabaseUnavailable
from gateway.core.events import Timings, Usage
from gateway.core.sessions import SessionClosed, SessionOpened
from gateway.core.states import StreamEnd
from gateway.services.recorder import SessionRecorder
from gateway.testing import MemorySessionStore


class FlakyStore(MemorySessionStore):
    """Fails while `down`, waits for `gate`, and counts its transactions."""

    def __init__(self) -> None:
        super().__init__()
        self.down = False
        self.writes = 0
        self.gate = anyio.Event()
        self.gate.set()

    async def write(self, opened: Sequence[SessionOpened], closed: Sequence[SessionClosed]) -> None:
        await self.gate.wait()
        if self.down:
            raise DatabaseUnavailable("locked")
        self.writes += 1
        await super().write(opened, closed)


def opened(name: str) -> SessionOpened:
    return SessionOpened(name, "r", "n", "m", opened_at=1.0)


def closed(name: str, end: StreamEnd = StreamEnd.STOP) -> SessionClosed:
    return SessionClosed(name, "p", "m", end, 2.0, Usage(), Timings())


async def no_sleep(_: float) -> None:
    await anyio.lowlevel.checkpoint()


async def test_records_are_written_in_order_and_a_ticket_tells_when() -> None:
    store = FlakyStore()
    recorder = SessionRecorder(store)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(recorder.run)
        ticket = recorder.opened(opened("a"))
        assert await recorder.wait_written(ticket, 5)
        recorder.closed(closed("a"))
        assert await recorder.flush(5)
        tasks.cancel_scope.cancel()
    session = await store.find("a")
    assert session is not None and session.closed is not None


async def test_what_gathers_during_a_commit_goes_in_one_transaction() -> None:
    store = FlakyStore()
    recorder = SessionRecorder(store)
    store.gate = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(recorder.run)
        recorder.opened(opened("first"))
        await anyio.wait_all_tasks_blocked()
        for n in range(50):
            recorder.opened(opened(str(n)))
        store.gate.set()
        assert await recorder.flush(5)
        tasks.cancel_scope.cancel()
    assert store.writes == 2


async def test_while_the_database_is_away_records_wait_and_then_all_are_there() -> None:
    store = FlakyStore()
    recorder = SessionRecorder(store, sleep=no_sleep)
    store.down = True
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(recorder.run)
        ticket = recorder.opened(opened("a"))
        assert not await recorder.wait_written(ticket, 0.01)
        assert not recorder.healthy
        recorder.closed(closed("a"))
        store.down = False
        assert await recorder.flush(5)
        assert recorder.healthy
        tasks.cancel_scope.cancel()
    session = await store.find("a")
    assert session is not None and session.closed is not None


async def test_waiting_records_are_bounded_and_a_loss_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    recorder = SessionRecorder(FlakyStore(), max_pending=1)
    recorder.opened(opened("kept"))
    recorder.opened(opened("lost"))
    assert "dropped session record lost" in caplog.text
