import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.engine.decoding.prompt_cache import BLOCK_TOKENS, PromptCache
from gateway.engine.memory.memory import Unlimited
from tests.integration.engine.ledger import Ledger

torch = pytest.importorskip("torch")

BLOCK_BYTES = 16


def block(*marks: int) -> list[int]:
    """Return the tokens of whole blocks, each full of its mark."""
    return [mark for mark in marks for _ in range(BLOCK_TOKENS)]


def add(cache: PromptCache, caller: str, ids: list[int]) -> None:
    def copy_out(start: int, end: int) -> torch.Tensor:
        return torch.tensor([ids[start], end - start, 0, 0], dtype=torch.int32)

    cache.add(caller, ids, copy_out)


def found(cache: PromptCache, caller: str, ids: list[int]) -> list[int]:
    return [int(data[0]) for data in cache.find(caller, ids)]


def test_the_longest_kept_beginning_is_found() -> None:
    cache = PromptCache(1000, Unlimited())
    add(cache, "a", [*block(1, 2, 3), 9])
    assert found(cache, "a", block(1, 2, 4)) == [1, 2]
    assert found(cache, "a", block(2)) == []
    assert found(cache, "a", block(1)[:-1]) == []


def test_a_common_beginning_is_kept_once() -> None:
    cache = PromptCache(1000, Unlimited())
    add(cache, "a", block(1, 2, 3))
    add(cache, "a", block(1, 2, 4))
    assert cache.memory_bytes == 4 * BLOCK_BYTES


def test_callers_share_nothing() -> None:
    cache = PromptCache(1000, Unlimited())
    add(cache, "a", block(1))
    assert found(cache, "b", block(1)) == []


def test_the_oldest_goes_first_and_a_beginning_outlives_its_ends() -> None:
    cache = PromptCache(3 * BLOCK_BYTES, Unlimited())
    add(cache, "a", block(1, 2))
    add(cache, "a", block(5))
    assert found(cache, "a", block(1)) == [1]
    add(cache, "a", block(6))
    assert found(cache, "a", block(1, 2)) == [1]
    assert found(cache, "a", block(5)) == [5]
    assert found(cache, "a", block(6)) == [6]


def test_without_room_nothing_is_kept() -> None:
    cache = PromptCache(0, Unlimited())
    add(cache, "a", block(1))
    assert found(cache, "a", block(1)) == []


@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), max_size=20),
    st.integers(0, 6),
)
def test_it_never_holds_more_than_it_may_and_finds_only_what_was_said(
    prompts: list[list[int]], blocks: int
) -> None:
    memory = Ledger()
    cache = PromptCache(blocks * BLOCK_BYTES, memory)
    for marks in prompts:
        add(cache, "a", block(*marks))
        assert cache.memory_bytes == memory.taken <= blocks * BLOCK_BYTES
        hit = found(cache, "a", block(*marks))
        assert hit == marks[: len(hit)]
        # The beginning is kept rather than the end.
        assert len(hit) == min(len(marks), blocks) or len(hit) > 0
    cache.clear()
    assert memory.taken == 0
