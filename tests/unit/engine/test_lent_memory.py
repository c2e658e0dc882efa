"""What a child asks of the gateway's budget: answers in time, too late, and never."""

from functools import partial

import anyio
import anyio.to_thread
import pytest

from gateway.engine.child import lent_memory
from gateway.engine.child.lent_memory import LentMemory
from gateway.engine.child.wire import FromChild, Need, Returned


class Wire:
    """What was posted; `answer` is what the gateway says to the questions, None: nothing."""

    def __init__(self, answer: bool | None) -> None:
        self.posted: list[FromChild] = []
        self.asked = anyio.Event()
        self.memory = LentMemory(self._post)
        self._answer = answer

    def _post(self, message: FromChild) -> None:
        self.posted.append(message)
        if isinstance(message, Need):
            self.asked.set()
            if self._answer is not None:
                self.memory.settle(message.id, self._answer)


@pytest.mark.parametrize("answer", [True, False])
async def test_a_thread_gets_what_the_gateway_says(answer: bool) -> None:
    wire = Wire(answer)
    assert await anyio.to_thread.run_sync(wire.memory.reserve, 10) is answer
    useful = partial(wire.memory.reserve, 20, is_needed=False)
    assert await anyio.to_thread.run_sync(useful) is answer
    await anyio.to_thread.run_sync(wire.memory.release, 10)
    assert wire.posted == [Need(1, 10, True), Need(2, 20, False), Returned(10)]


async def test_an_answer_that_comes_too_late_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lent_memory, "ANSWER_S", 0.01)
    wire = Wire(None)
    for number, granted in ((1, True), (2, False)):
        assert not await anyio.to_thread.run_sync(wire.memory.reserve, 10)
        wire.memory.settle(number, granted)
    assert wire.posted == [Need(1, 10, True), Returned(10), Need(2, 10, True)]
    wire.memory.settle(1, granted=True)
    wire.memory.settle(99, granted=True)
    assert len(wire.posted) == 3


async def test_when_the_process_ends_nobody_waits_for_an_answer() -> None:
    wire = Wire(None)

    async def reserve() -> None:
        assert not await anyio.to_thread.run_sync(wire.memory.reserve, 10)

    with anyio.fail_after(lent_memory.ANSWER_S / 2):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reserve)
            await wire.asked.wait()
            wire.memory.close()
        await reserve()
    assert wire.posted == [Need(1, 10, True)]
