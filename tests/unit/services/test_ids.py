import re
from collections.abc import Callable
from itertools import count

from gateway.services.ids import RecordIds


def test_ids_are_hexadecimal_and_never_the_same() -> None:
    ids = RecordIds()
    made = [ids.make(1_790_000_000.5) for _ in range(10_000)]
    assert len(set(made)) == len(made)
    assert all(re.fullmatch("[0-9a-f]{24}", each) for each in made)


def test_ids_rise_with_the_seconds_in_which_they_are_made() -> None:
    ids = RecordIds()
    made = [ids.make(1_790_000_000.25 + second) for second in range(1000)]
    assert made == sorted(made)


def test_all_of_an_id_but_its_second_is_drawn_at_random() -> None:
    ids = RecordIds(counting())
    second, drawn = ids.make(16.0)[:8], {ids.make(16.0)[8:] for _ in range(300)}
    assert second == "00000010"
    assert len(drawn) == 300  # each eight bytes of their own, over several draws


def counting() -> Callable[[int], bytes]:
    """Return what draws the numbers from 0 on, each of eight bytes."""
    numbers = count()
    return lambda size: b"".join(next(numbers).to_bytes(8, "big") for _ in range(size // 8))
