"""Loops that are made to stand still, and what is told of it."""

import ctypes
import gc
import importlib
import logging
import os
import sys
import threading
import time
import types
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from gateway.telemetry.watchdog import MAX_TOLD, LoopWatchdog, Stalls, _describe

WARN_S = 0.2
"""Far above what a busy machine does to a loop that has nothing to do."""


@asynccontextmanager
async def watched(warn_s: float = WARN_S) -> AsyncIterator[Stalls]:
    stalls = Stalls()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(LoopWatchdog(stalls, warn_s=warn_s).run)
        await anyio.wait_all_tasks_blocked()
        yield stalls
        while not stalls.seconds.count:
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()


def hold_the_loop(seconds: float) -> None:
    time.sleep(seconds)


def hold_the_interpreter(seconds: float) -> None:
    """Sleep in C and keep the interpreter's lock."""
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))


@pytest.mark.parametrize("hold", [hold_the_loop, hold_the_interpreter])
async def test_a_stall_is_counted_and_its_place_is_told(
    hold: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    async with watched() as stalls:
        hold(5 * WARN_S)
    assert stalls.worst_s > 3 * WARN_S
    assert stalls.seconds.total >= stalls.worst_s
    told = [record.getMessage() for record in caplog.records if "stood still" in record.message]
    [ours] = [text for text in told if hold.__name__ in text]  # the machine may stall, too
    # Not how the loop came to be run.
    assert "run_until_complete" not in ours


@pytest.mark.parametrize(
    ("ran", "level", "said"),
    [(1.0, logging.WARNING, "a thread holds it up"), (0.1, logging.INFO, "for 10% of it")],
)
async def test_a_loop_that_waits_was_held_up_by_a_thread_or_by_others(
    ran: float, level: int, said: str
) -> None:
    loop_thread = threading.get_ident()

    def look() -> tuple[int, str]:
        frame = sys._current_frames()[loop_thread]
        while not frame.f_code.co_filename.endswith("selectors.py"):
            frame = sys._current_frames()[loop_thread]
        return _describe(frame, {}, ran)

    found, text = await anyio.to_thread.run_sync(look)
    assert found == level and said in text


async def test_a_process_that_was_stopped_blames_the_machine(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)

    def told() -> list[str]:
        return [r.levelname for r in caplog.records if "the machine ran other" in r.getMessage()]

    stop = f"kill -STOP {os.getpid()}; sleep {5 * WARN_S}; kill -CONT {os.getpid()}"
    async with watched():
        while not told():  # the loop may be quicker to go on than the watchdog's thread to look
            await anyio.run_process(["sh", "-c", stop])
    assert set(told()) == {"INFO"}


IMPORTED = """
import ctypes
from watchdog_of_the_test import has_told
for _ in range(40):
    if has_told():
        break
    ctypes.PyDLL(None).usleep({microseconds})
"""
"""A module that holds the interpreter while it is loaded, as libraries in C do; again where the
loop was quicker to go on than the watchdog's thread to look."""


async def test_a_stall_by_another_thread_s_import_names_it_and_is_no_warning(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)

    def told() -> list[tuple[str, str]]:
        found = [r for r in caplog.records if "slow_to_load" in r.getMessage()]
        return [(r.levelname, r.getMessage()) for r in found]

    watchdog = types.SimpleNamespace(has_told=told)
    monkeypatch.setitem(sys.modules, "watchdog_of_the_test", watchdog)
    text = IMPORTED.format(microseconds=int(3 * WARN_S * 1e6))
    (tmp_path / "slow_to_load.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    async with watched() as stalls:
        await anyio.to_thread.run_sync(importlib.import_module, "slow_to_load")
    assert stalls.worst_s > WARN_S
    [(level, said), *_] = told()
    assert level == "INFO"
    assert "while a thread imports slow_to_load" in said


async def test_a_stall_by_a_collection_says_so_and_is_no_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)

    class Slow:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            hold_the_interpreter(5 * WARN_S)

    async with watched():
        Slow()
        gc.collect()
    told = {r.levelname for r in caplog.records if "while garbage was collected" in r.message}
    assert told == {"INFO"}


async def test_nothing_is_left_in_the_collector(caplog: pytest.LogCaptureFixture) -> None:
    before = list(gc.callbacks)
    async with watched():
        assert len(gc.callbacks) == len(before) + 1
        hold_the_loop(5 * WARN_S)
    assert gc.callbacks == before


async def test_a_loop_that_turns_is_no_stall() -> None:
    # What a machine does that is busy with other things would be seen as a stall, too: so the
    # clock is by hand.
    now = [0.0]
    beats = 0
    enough = anyio.Event()
    stalls = Stalls()

    async def sleep(seconds: float) -> None:
        nonlocal beats
        beats += 1
        now[0] += seconds + 0.9 * WARN_S
        if beats == 100:
            enough.set()
        await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        dog = LoopWatchdog(stalls, warn_s=WARN_S, clock=lambda: now[0], sleep=sleep)
        tasks.start_soon(dog.run)
        await enough.wait()
        tasks.cancel_scope.cancel()
    assert stalls.seconds.count == 0


async def test_many_stalls_are_all_counted_and_a_bounded_number_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    warn_s = 0.01
    async with watched(warn_s) as stalls:
        while stalls.seconds.count < 2 * MAX_TOLD:
            hold_the_loop(4 * warn_s)
            await anyio.sleep(warn_s)
    assert len([r for r in caplog.records if "stood still" in r.message]) <= MAX_TOLD


async def test_the_thread_ends_with_its_task() -> None:
    before = set(threading.enumerate())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(LoopWatchdog(Stalls(), warn_s=0.05).run)
        await anyio.wait_all_tasks_blocked()
        assert len(set(threading.enumerate()) - before) == 1
        tasks.cancel_scope.cancel()
    assert set(threading.enumerate()) == before
