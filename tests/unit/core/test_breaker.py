"""A breaker opens after failures in a row and lets exactly one try."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.core.breaker import FAILURES, FIRST_PAUSE_S, LONGEST_PAUSE_S, Breaker
from gateway.core.errors import (
    IncompleteStream,
    InvalidRequest,
    ModelCorrupt,
    ModelLoadFailed,
    ProviderUnavailable,
)
from gateway.core.retry import (
    BUDGET_MOST,
    BUDGET_SHARE,
    LONGEST_S,
    RetryBudget,
    blames_model,
    retry_in_s,
)


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker()
    for _ in range(FAILURES):
        assert breaker.state(now) == "closed"
        breaker.fail(now)
    return breaker


def test_it_opens_after_failures_in_a_row_and_is_half_open_after_a_pause() -> None:
    breaker = opened()
    assert breaker.state(0) == "open" and breaker.wait_s(0) == FIRST_PAUSE_S
    assert breaker.state(FIRST_PAUSE_S) == "half_open"


def test_one_probe_at_a_time_and_a_failed_one_doubles_the_pause() -> None:
    breaker = opened()
    now = FIRST_PAUSE_S
    for pause_s in (2.0, 4.0, 8.0, 16.0, LONGEST_PAUSE_S, LONGEST_PAUSE_S):
        breaker.begin_probe()
        assert breaker.state(now) == "open"
        breaker.fail(now, is_probe=True)
        breaker.end_probe()
        assert breaker.wait_s(now) == pause_s
        now += pause_s
        assert breaker.state(now) == "half_open"


def test_a_probe_that_leaves_lets_the_next_one_try() -> None:
    breaker = opened()
    breaker.begin_probe()
    breaker.end_probe()
    assert breaker.state(FIRST_PAUSE_S) == "half_open"


def test_late_failures_of_those_let_in_before_do_not_lengthen_the_pause() -> None:
    breaker = opened()
    breaker.fail(0.5)
    assert breaker.wait_s(0.5) == 0.5


@given(st.lists(st.booleans(), max_size=500))
def test_retries_are_at_most_a_fifth_and_a_few(wanted: list[bool]) -> None:
    budget, retried = RetryBudget(), 0
    for wants in wanted:
        budget.earn()
        retried += wants and budget.spend()
    assert retried <= BUDGET_MOST + BUDGET_SHARE * len(wanted)


def test_only_what_may_pass_soon_is_tried_again() -> None:
    away = ProviderUnavailable("p", "Away.")
    assert retry_in_s(away, 1, lambda: 1.0) == 0.05
    assert retry_in_s(away, 2, lambda: 1.0) == 0.2
    assert retry_in_s(away, 3, lambda: 1.0) is None
    assert retry_in_s(IncompleteStream("p", "Cut."), 1, lambda: 0.0) == 0.0
    assert retry_in_s(InvalidRequest("No."), 1, lambda: 0.0) is None
    soon = ProviderUnavailable("p", "Soon.", retry_after_s=0.5)
    late = ProviderUnavailable("p", "Later.", retry_after_s=LONGEST_S * 2)
    assert retry_in_s(soon, 1, lambda: 0.0) == 0.5
    assert retry_in_s(late, 1, lambda: 0.0) is None


def test_a_damaged_model_is_not_left_alone_but_told_of_each_time() -> None:
    assert blames_model(ModelLoadFailed("no"))
    assert not blames_model(ModelCorrupt("torn"))
