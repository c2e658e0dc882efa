"""Whoever writes large pieces waits for his turn; nobody is forgotten."""

import anyio
import anyio.lowlevel

from gateway.core.turns import TURN_BYTES, Turns


class Writer:
    """Writes pieces of `size` as soon as it may, until none is left; `log` has who wrote when."""

    def __init__(self, name: str, turns: Turns, pieces: int, size: int, log: list[str]) -> None:
        self._name = name
        self._turns = turns
        self._pieces = pieces
        self._size = size
        self._log = log

    def write(self) -> None:
        while self._pieces and self._turns.admit(self._size, self.write):
            self._pieces -= 1
            self._log.append(self._name)


async def test_so_much_is_written_in_a_turn_and_the_rest_in_the_next_ones() -> None:
    log: list[str] = []
    Writer("a", Turns(), pieces=9, size=TURN_BYTES // 4, log=log).write()
    sizes = [len(log)]
    while len(log) < 9:
        await anyio.lowlevel.checkpoint()
        sizes.append(len(log))
    assert sizes[:3] == [4, 8, 9]


async def test_who_waits_longest_is_next_and_asks_once_however_often_he_would() -> None:
    turns, log = Turns(), list[str]()
    first, *others = (Writer(name, turns, 1, TURN_BYTES, log) for name in "abcd")
    first.write()
    for writer in others:
        writer.write()
        writer.write()
    while len(log) < 4:
        await anyio.lowlevel.checkpoint()
    assert log == ["a", "b", "c", "d"]


async def test_one_piece_that_is_more_than_a_turn_is_written_all_the_same() -> None:
    log: list[str] = []
    Writer("a", Turns(), pieces=2, size=10 * TURN_BYTES, log=log).write()
    assert log == ["a"]
    while len(log) < 2:
        await anyio.lowlevel.checkpoint()


async def test_a_turn_has_one_number_and_the_next_another() -> None:
    turns = Turns()
    first = turns.number()
    assert turns.number() == first
    await anyio.lowlevel.checkpoint()
    assert turns.number() != first
