"""The memory budget: whatever is asked for, from whichever thread, it is never overdrawn."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from gateway.core.names import ModelRef
from gateway.engine.memory.budget import DeviceBudgets, MemoryBudget, Share

REF = ModelRef("huggingface", "m")
TOTAL = 1000


class Budgeting(RuleBasedStateMachine):
    """Compares a budget with plain arithmetic."""

    shares = Bundle("shares")

    def __init__(self) -> None:
        super().__init__()
        self.budget = MemoryBudget(TOTAL)
        self.held: dict[Share, int] = {}

    @rule(target=shares, size=st.integers(0, TOTAL + 1))
    def open(self, size: int) -> Share | None:
        fits = size <= TOTAL - sum(self.held.values())
        share = self.budget.open(REF, size)
        assert (share is not None) == fits
        if share is not None:
            self.held[share] = size
        return share

    @rule(share=shares, size=st.integers(0, TOTAL))
    def reserve(self, share: Share | None, size: int) -> None:
        if share is None:
            return
        fits = share in self.held and size <= TOTAL - sum(self.held.values())
        assert share.reserve(size) == fits
        if fits:
            self.held[share] += size

    @rule(share=shares, size=st.integers(0, TOTAL))
    def release(self, share: Share | None, size: int) -> None:
        if share is None:
            return
        if share in self.held and size > self.held[share]:
            with pytest.raises(ValueError, match="more bytes than it holds"):
                share.release(size)
            return
        share.release(size)
        if share in self.held:
            self.held[share] -= size

    @rule(share=consumes(shares))
    def close(self, share: Share | None) -> None:
        if share is not None:
            share.close()
            share.close()
            self.held.pop(share, None)
            assert not share.reserve(0)

    @invariant()
    def the_sum_is_right_and_never_too_much(self) -> None:
        assert self.budget.used_bytes == sum(self.held.values()) <= TOTAL
        assert self.budget.free_bytes == TOTAL - self.budget.used_bytes
        assert all(share.held_bytes == size for share, size in self.held.items())


TestBudgeting = Budgeting.TestCase


@given(sizes=st.lists(st.integers(1, 400), min_size=1, max_size=6))
def test_threads_that_ask_at_once_never_overdraw_it(sizes: list[int]) -> None:
    budget = MemoryBudget(TOTAL)
    seen: list[int] = []
    start = threading.Barrier(len(sizes))

    def ask(size: int) -> None:
        share = budget.open(REF, 0)
        assert share is not None
        start.wait(10)
        for _ in range(50):
            if share.reserve(size):
                seen.append(budget.used_bytes)
                share.release(size)

    threads = [threading.Thread(target=ask, args=(size,)) for size in sizes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert budget.used_bytes == 0
    assert all(0 <= used <= TOTAL for used in seen)
    assert seen


def test_a_shortage_is_told_with_what_is_missing_and_success_is_not() -> None:
    budget = MemoryBudget(TOTAL)
    share = budget.open(REF, 900)
    assert share is not None
    told: list[int] = []
    share.on_shortage = told.append
    assert share.reserve(100)
    assert not share.reserve(5, is_needed=False)
    assert not share.reserve(7)
    assert told == [7]


def test_a_share_neither_grows_nor_shrinks_by_less_than_nothing() -> None:
    share = MemoryBudget(TOTAL).open(REF, 10)
    assert share is not None
    with pytest.raises(ValueError, match="grows"):
        share.reserve(-1)
    with pytest.raises(ValueError, match="shrinks"):
        share.release(-1)


def test_what_a_load_left_behind_stays_with_the_process_when_its_share_is_closed() -> None:
    budget = MemoryBudget(TOTAL)
    share = budget.open(REF, 300)
    assert share is not None
    share.leave_behind(100)
    assert (share.held_bytes, budget.used_bytes, budget.overhead_bytes) == (200, 300, 100)
    share.leave_behind(250)  # more than it has: it was not asked for, and is there all the same
    assert (share.held_bytes, budget.used_bytes, budget.overhead_bytes) == (0, 350, 350)
    share.close()
    assert budget.used_bytes == 350
    assert budget.models_bytes == budget.free_bytes == TOTAL - 350


def test_each_device_has_one_budget_of_its_own() -> None:
    budgets = DeviceBudgets({"cpu": 10, "cuda:0": 20}.__getitem__)
    assert budgets.of("cpu") is budgets.of("cpu")
    assert (budgets.of("cpu").total_bytes, budgets.of("cuda:0").total_bytes) == (10, 20)
