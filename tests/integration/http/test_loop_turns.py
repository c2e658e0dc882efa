"""The measure that fault tests go by: it sees what computes, and not what waits."""

import asyncio
import itertools
import time

import anyio
import anyio.lowlevel
import pytest

from tests.integration.http import loop_turns
from tests.integration.http.loop_turns import MAX_TURN_S, LoopTurns


async def longest_turn_of(seconds: float, *, computes: bool) -> float:
    turns = LoopTurns(asyncio.get_running_loop())
    with turns.measured():
        await anyio.lowlevel.checkpoint()
        if computes:
            until = time.thread_time() + seconds
            while time.thread_time() < until:
                pass
        else:
            await anyio.sleep(seconds)
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
    assert turns.count > 0
    return turns.longest_s


async def test_a_turn_that_computes_for_long_is_seen() -> None:
    # The host may have taken some of it.
    assert await longest_turn_of(4 * MAX_TURN_S, computes=True) >= MAX_TURN_S


async def test_what_the_host_took_is_no_part_of_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = itertools.count(0.0, 2 * MAX_TURN_S)
    monkeypatch.setattr(loop_turns, "stolen_seconds", lambda: next(hosts))
    assert await longest_turn_of(2 * MAX_TURN_S, computes=True) < MAX_TURN_S


async def test_a_loop_that_waits_computes_nothing() -> None:
    assert await longest_turn_of(2 * MAX_TURN_S, computes=False) < MAX_TURN_S
