from hypothesis import given
from hypothesis import strategies as st

from gateway.engine.embedding.batching import SMALL_GAP, choose_batch

QUEUES = st.lists(st.lists(st.integers(1, 600), min_size=1, max_size=30).map(sorted), min_size=1)


def taken(queues: list[list[int]], budget: int) -> list[list[int]]:
    parts = choose_batch(queues, budget)
    return [queue[part] for queue, part in zip(queues, parts, strict=True)]


@given(QUEUES, st.integers(0, 2000))
def test_a_batch_keeps_its_budget_and_pads_little(queues: list[list[int]], budget: int) -> None:
    parts = taken(queues, budget)
    batch = [length for part in parts for length in part]
    longest = max(batch)
    assert queues[0][-1] == parts[0][-1]
    assert len(batch) == 1 or len(batch) * longest <= budget
    assert all(longest <= max(length * 4 // 3 + 1, length + SMALL_GAP) for length in batch)


def test_who_has_the_turn_is_served_also_beyond_the_budget() -> None:
    assert taken([[500], [1, 2]], 10) == [[500], []]


def test_others_of_about_its_length_fill_a_batch_up() -> None:
    assert taken([[40], [10, 38, 39, 40, 90], [37]], 160) == [[40], [38, 39, 40], []]
    assert taken([[40], [10, 38, 39, 50]], 150) == [[40], [39, 50]]


def test_short_inputs_go_together_whatever_their_share() -> None:
    assert taken([[1, 5, 17]], 512) == [[1, 5, 17]]
    assert taken([[10, 100]], 512) == [[100]]
