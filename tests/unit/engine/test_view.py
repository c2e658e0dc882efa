from hypothesis import given
from hypothesis import strategies as st

from gateway.engine.decoding.view import CALL_TOKENS, choose_apart


def cost(lengths: list[int], apart: frozenset[int]) -> int:
    together = [length for index, length in enumerate(lengths) if index not in apart]
    alone = sum(lengths[index] + CALL_TOKENS for index in apart)
    return alone + len(lengths) * max(together, default=0)


def test_sequences_of_one_length_are_computed_together() -> None:
    assert choose_apart([200] * 16) == frozenset()


def test_a_far_longer_one_is_computed_alone() -> None:
    assert choose_apart([200, 8000, 210]) == {1}


@given(st.lists(st.integers(1, 4000), min_size=1, max_size=12))
def test_the_choice_is_never_worse_than_all_together_or_all_alone(lengths: list[int]) -> None:
    chosen = cost(lengths, choose_apart(lengths))
    assert chosen <= cost(lengths, frozenset())
    assert chosen <= cost(lengths, frozenset(range(len(lengths))))
