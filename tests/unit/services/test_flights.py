"""Single flight: one question for all who ask it at once, and whoever leaves leaves alone."""

import anyio
import anyio.lowlevel
import pytest

from gateway.core.errors import HubUnavailable
from gateway.services.flights import SingleFlight


class Question:
    """Is answered when the test lets it."""

    def __init__(self) -> None:
        self.asked = 0
        self.gate = anyio.Event()
        self.error: Exception | None = None

    async def __call__(self) -> int:
        self.asked += 1
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return self.asked


async def settle() -> None:
    for _ in range(20):
        await anyio.lowlevel.checkpoint()


async def test_those_who_ask_at_once_get_one_answer_and_the_next_asks_anew() -> None:
    flights, question, heard = SingleFlight[int](), Question(), list[int]()

    async def ask(key: str) -> None:
        heard.append(await flights.ask(key, question))

    async with anyio.create_task_group() as tasks:
        for key in ("a", "a", "a", "b"):
            tasks.start_soon(ask, key)
        await settle()
        assert question.asked == 2
        question.gate.set()
    assert len(heard) == 4
    await ask("a")
    assert question.asked == 3


async def test_an_error_is_everybodys() -> None:
    flights, question, errors = SingleFlight[int](), Question(), list[HubUnavailable]()
    question.error = HubUnavailable("away")

    async def ask() -> None:
        with pytest.raises(HubUnavailable) as caught:
            await flights.ask("a", question)
        errors.append(caught.value)

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(ask)
        await settle()
        question.gate.set()
    assert question.asked == 1
    assert len({id(error) for error in errors}) == 3  # each with a traceback of its own


async def test_when_the_one_who_asks_leaves_the_next_asks() -> None:
    flights, question, heard = SingleFlight[int](), Question(), list[int]()
    first = anyio.CancelScope()

    async def leave() -> None:
        with first:
            await flights.ask("a", question)

    async def stay() -> None:
        heard.append(await flights.ask("a", question))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(leave)
        await settle()
        tasks.start_soon(stay)
        tasks.start_soon(stay)
        await settle()
        first.cancel()
        await settle()
        assert question.asked == 2
        question.gate.set()
    assert heard == [2, 2]
