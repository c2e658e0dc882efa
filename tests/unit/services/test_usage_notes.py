"""UsageNotes: what is written, when, and what a database that is away makes of it."""

from collections.abc import Mapping

import anyio

from gateway.core.errors import DatabaseUnavailable
from gateway.core.events import Usage
from gateway.services.usage_notes import NOTE_EVERY_S, UsageNotes
from gateway.testing import MemorySessionStore
from tests.hand_clock import HandClock


class House(MemorySessionStore):
    """A store that tells what it was given, and streams that a test sets."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = HandClock()
        self.used: dict[str, Usage] = {}
        self.written: list[Mapping[str, Usage]] = []
        self.is_away = False
        self.notes = UsageNotes(self, lambda: dict(self.used), sleep=self.clock.sleep)

    async def note_usage(self, used: Mapping[str, Usage]) -> None:
        if self.is_away:
            raise DatabaseUnavailable("away")
        self.written.append(used)


async def test_only_what_changed_is_written_and_nothing_for_nothing() -> None:
    at = House()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(at.notes.run)
        await anyio.wait_all_tasks_blocked()
        await at.clock.turn(NOTE_EVERY_S)
        assert at.written == []
        at.used = {"a": Usage(1, 1), "b": Usage(1, 2)}
        await at.clock.turn(NOTE_EVERY_S)
        at.used = {"a": Usage(1, 5), "b": Usage(1, 2), "c": Usage(1, 0)}
        await at.clock.turn(NOTE_EVERY_S)
        await at.clock.turn(NOTE_EVERY_S)
        tasks.cancel_scope.cancel()
    assert at.written == [
        {"a": Usage(1, 1), "b": Usage(1, 2)},
        {"a": Usage(1, 5), "c": Usage(1, 0)},
    ]


async def test_a_note_that_was_missed_is_in_the_next() -> None:
    at = House()
    at.used, at.is_away = {"a": Usage(1, 1)}, True
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(at.notes.run)
        await anyio.wait_all_tasks_blocked()
        await at.clock.turn(NOTE_EVERY_S)
        at.is_away = False
        await at.clock.turn(NOTE_EVERY_S)
        tasks.cancel_scope.cancel()
    assert at.written == [{"a": Usage(1, 1)}]
