"""A bell wakes all who wait for it, once."""

import anyio
import pytest

from gateway.services.bell import Bell


async def test_a_ring_wakes_all_who_wait_and_nobody_later() -> None:
    bell, woken = Bell(), list[bool]()

    async def wait() -> None:
        woken.append(await bell.wait())

    bell.ring()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        assert woken == []
        bell.ring()
        bell.ring()
    assert woken == [True, True]
    assert not await bell.wait(0.01)


async def test_who_was_cancelled_or_waited_too_long_is_forgotten() -> None:
    bell = Bell()
    assert not await bell.wait(0.001)
    with anyio.move_on_after(0.001):
        await bell.wait()
    assert bell.waiting == 0
    bell.ring()


@pytest.mark.parametrize("within_s", [None, 60.0])
async def test_a_ring_beats_the_limit(within_s: float | None) -> None:
    bell = Bell()
    async with anyio.create_task_group() as tasks:

        async def ring() -> None:
            bell.ring()

        tasks.start_soon(ring)
        with anyio.fail_after(5):
            assert await bell.wait(within_s)
