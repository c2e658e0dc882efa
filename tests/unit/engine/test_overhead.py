"""What is taken once in a process is counted as it is taken."""

from collections.abc import Iterable

import pytest

from gateway.engine.memory.overhead import Overhead, resident_bytes


def reading(*sizes: int | None) -> Overhead:
    left: Iterable[int | None] = iter(sizes)
    return Overhead(lambda: next(left))  # type: ignore[call-overload, no-any-return]


def test_growth_is_added_up() -> None:
    overhead = reading(100, 130, 200, 205)
    with overhead.counting(50):
        pass
    with overhead.counting(50):
        pass
    assert overhead.held_bytes == 35


@pytest.mark.parametrize(("before", "after", "counted"), [(100, 190, 50), (100, 60, 0)])
def test_what_others_do_meanwhile_is_not_taken_for_it(
    before: int, after: int, counted: int
) -> None:
    overhead = reading(before, after)
    with overhead.counting(50):
        pass
    assert overhead.held_bytes == counted


def test_the_most_is_counted_where_nobody_tells() -> None:
    overhead = reading(None, None)
    with overhead.counting(50):
        pass
    assert overhead.held_bytes == 50


def test_what_failed_has_taken_its_bytes_too() -> None:
    overhead = reading(100, 120)
    with pytest.raises(RuntimeError), overhead.counting(50):
        raise RuntimeError
    assert overhead.held_bytes == 20


def test_this_process_is_measured() -> None:
    size = 32 * 2**20
    overhead = Overhead()
    with overhead.counting(2 * size):
        kept = bytearray(b"x") * size
    assert resident_bytes() is None or 0.9 * size < overhead.held_bytes < 1.2 * size
    del kept
