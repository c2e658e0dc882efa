"""SessionPurger: what is deleted, in which portions, and what a dead database does to it."""

import anyio
import anyio.lowlevel
import pytest

from gateway.core.errors import DatabaseUnavailable
from gateway.core.sessions import RecordCounts, SessionOpened
from gateway.services.retention import DAY_S, INTERVAL_S, SessionPurger
from gateway.testing import MemorySessionStore

NOW = 1000 * DAY_S


class CountingStore(MemorySessionStore):
    """Takes 2 s of the hand clock for a purge; tells the limits that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.limits: list[int] = []
        self.clock = 0.0
        self.down = False

    async def purge(self, opened_before: float, limit: int) -> int:
        if self.down:
            raise DatabaseUnavailable("gone")
        self.limits.append(limit)
        self.clock += 2.0
        return await super().purge(opened_before, limit)


class House:
    def __init__(self, keep_days: int, batch: int = 10) -> None:
        self.store = CountingStore()
        self.counts = RecordCounts()
        self.slept: list[float] = []
        self.purger = SessionPurger(
            self.store,
            keep_days=keep_days,
            batch=batch,
            counts=self.counts,
            now=lambda: NOW,
            clock=lambda: self.store.clock,
            sleep=self._sleep,
        )

    async def fill(self, *ages_days: float) -> None:
        ages = enumerate(ages_days)
        at = [SessionOpened(f"s{n:03}", "r", "n", "m", NOW - age * DAY_S) for n, age in ages]
        await self.store.write(at, [])

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await anyio.lowlevel.checkpoint()


async def test_what_is_older_than_the_days_is_deleted_and_nothing_else() -> None:
    house = House(keep_days=3)
    await house.fill(0, 2.9, 3.1, 400)
    assert await house.purger.purge() == 2
    assert [s.opened.id for s in await house.store.recent(9)] == ["s000", "s001"]
    assert house.counts.purged == 2


async def test_it_goes_batch_by_batch_and_rests_as_long_as_each_took() -> None:
    house = House(keep_days=1, batch=10)
    await house.fill(*[5.0] * 25)
    assert await house.purger.purge() == 25
    assert house.store.limits == [10, 10, 10]
    assert house.slept == [2.0, 2.0]


async def test_no_days_keep_everything() -> None:
    house = House(keep_days=0)
    await house.fill(4000)
    await house.purger.run()
    assert house.store.limits == []


async def test_a_dead_database_is_tried_again_later(caplog: pytest.LogCaptureFixture) -> None:
    house = House(keep_days=1)
    await house.fill(5)
    house.store.down = True
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(house.purger.run)
        while not house.slept:
            await anyio.lowlevel.checkpoint()
        house.store.down = False
        while not house.counts.purged:
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    assert house.slept[0] == INTERVAL_S
    assert "not purged" in caplog.text
