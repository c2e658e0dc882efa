from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from gateway.engine.decoding.fair_queue import FairQueue


class Item(NamedTuple):
    caller: str
    number: int


def filled(callers: str, limit: int = 100) -> FairQueue[Item]:
    queue: FairQueue[Item] = FairQueue()
    for number, caller in enumerate(callers):
        assert queue.push(Item(caller, number), limit) is None
    return queue


def pop_all(queue: FairQueue[Item]) -> str:
    return "".join(queue.pop().caller for _ in range(len(queue)))


def test_callers_take_turns_however_many_one_has() -> None:
    assert pop_all(filled("aaaabbc")) == "abcabaa"


def test_a_callers_requests_keep_their_order() -> None:
    queue = filled("aabab")
    numbers = [queue.pop() for _ in range(5)]
    assert [n.number for n in numbers if n.caller == "a"] == [0, 1, 3]
    assert [n.number for n in numbers if n.caller == "b"] == [2, 4]


def test_a_full_queue_refuses_the_newest_of_the_greediest() -> None:
    queue = filled("aaa", limit=3)
    assert queue.push(Item("a", 9), 3) == Item("a", 9)
    assert queue.push(Item("b", 9), 3) == Item("a", 2)
    assert queue.push(Item("b", 10), 3) == Item("b", 10)
    assert pop_all(queue) == "aba"


def test_what_was_put_back_is_next() -> None:
    queue = filled("ab")
    item = queue.pop()
    queue.push(Item("c", 3), 10)
    queue.put_back(item)
    assert pop_all(queue) == "abc"


def test_without_places_everybody_is_refused() -> None:
    assert FairQueue[Item]().push(Item("a", 0), 0) == Item("a", 0)


@given(st.text("abc", max_size=30), st.sets(st.integers(0, 29)))
def test_the_order_shown_is_the_order_of_service(callers: str, gone: set[int]) -> None:
    queue = filled(callers)
    removed = queue.remove(lambda item: item.number in gone)
    shown = list(queue)
    assert sorted(item.number for item in removed) == sorted(
        number for number in gone if number < len(callers)
    )
    assert [queue.pop() for _ in range(len(queue))] == shown
    assert len(shown) + len(removed) == len(callers)


def test_who_had_a_turn_and_stays_goes_behind_his_own_and_his_caller_behind_others() -> None:
    queue = filled("aab")
    queue.rotate()
    assert [(item.caller, item.number) for item in queue] == [("b", 2), ("a", 1), ("a", 0)]
