import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.engine.decoding.pace import MAX_PREFILL, MIN_PREFILL, STALL_STEPS, Pace, share_prefill


def test_alone_prompts_take_the_largest_chunk() -> None:
    assert Pace().prefill_tokens(0) == MAX_PREFILL


def test_beside_decoding_a_chunk_takes_no_longer_than_a_few_steps() -> None:
    pace = Pace()
    pace.observe_step(1, 0, 0.020)
    pace.observe_step(1, 100, 0.020 + 0.050)  # 0.5 ms a prompt token
    assert pace.prefill_tokens(1) == STALL_STEPS * 0.020 / 0.0005


def test_a_step_is_what_it_takes_for_as_many_as_decode() -> None:
    pace = Pace()
    for decoding, seconds in ((16, 0.060), (1, 0.013), (2, 0.014)):
        pace.observe_step(decoding, 0, seconds)
    pace.observe_step(0, 500, 0.250)
    assert pace.prefill_tokens(16) == int(STALL_STEPS * 0.060 / 0.0005)
    assert pace.prefill_tokens(2) == int(STALL_STEPS * 0.014 / 0.0005)
    assert pace.prefill_tokens(9) == int(STALL_STEPS * 0.037 / 0.0005)
    assert pace.prefill_tokens(64) == pace.prefill_tokens(16), "they take no less"


def test_what_any_prompt_costs_is_not_taken_for_the_cost_of_its_tokens() -> None:
    pace = Pace()
    pace.observe_step(1, 0, 0.020)
    for tokens in (32, 100, 200, 400):
        pace.observe_step(1, tokens, 0.020 + 0.030 + tokens * 0.0005)
    assert pace.prefill_tokens(1) > 90, "and not the 41 that 32 in 46 ms would come to"


def test_before_anything_is_known_a_chunk_is_small() -> None:
    assert Pace().prefill_tokens(3) == MIN_PREFILL


def test_a_step_is_guessed_while_there_are_always_prompts() -> None:
    pace = Pace()
    pace.observe_step(0, 512, 0.512)  # prompts alone: 1 ms a token
    pace.observe_step(4, 32, 0.032 + 0.030)
    assert pace.prefill_tokens(4) == int(STALL_STEPS * 0.030 / 0.001)


@pytest.mark.parametrize("cold_s", [0.080, 1.2])
def test_a_few_cold_tokens_do_not_keep_chunks_small(cold_s: float) -> None:
    pace = Pace()
    pace.observe_step(0, 8, cold_s)
    pace.observe_step(1, 0, 0.030)
    pace.observe_step(0, 512, 0.512)
    assert pace.prefill_tokens(1) > 75


def test_cold_and_disturbed_steps_do_not_make_chunks_large() -> None:
    pace = Pace()
    pace.observe_step(0, 512, 0.512)
    for seconds in (1.5, 0.020, 0.021, 0.900, 0.020):
        pace.observe_step(1, 0, seconds)
    assert pace.prefill_tokens(1) <= STALL_STEPS * 0.021 / 0.001


steps = st.lists(st.tuples(st.integers(0, 64), st.integers(0, 512)), max_size=40)
seconds = st.floats(0.0001, 0.1)


@given(steps, st.integers(1, 64), seconds, seconds, seconds, st.floats(1e-6, 0.01))
def test_prompts_never_stall_those_who_decode_by_more_than_is_promised(
    history: list[tuple[int, int]],
    decoding: int,
    base_s: float,
    row_s: float,
    any_s: float,
    token_s: float,
) -> None:
    """Whatever was seen of a model: a step costs something, so does each sequence and each token,
    and it costs something to have prompts at all."""

    def takes(rows: int, tokens: int) -> float:
        decode_s = base_s + rows * row_s if rows else 0.0
        return decode_s + (any_s + tokens * token_s if tokens else 0.0)

    pace = Pace()
    for rows, tokens in [(1, 0), (64, 0), *history]:
        if rows or tokens:
            pace.observe_step(rows, tokens, takes(rows, tokens))
    chosen = pace.prefill_tokens(decoding)
    promised_s = (1 + STALL_STEPS) * takes(decoding, 0) + any_s
    assert chosen == MIN_PREFILL or takes(decoding, chosen) <= promised_s * (1 + 1e-9)


def test_a_wait_is_foretold_from_what_others_took() -> None:
    pace = Pace()
    assert pace.eta_s(1, 4) is None
    pace.observe_service(8.0)
    assert pace.eta_s(2, 4) == 4.0


def test_the_shortest_prompt_goes_first_and_the_oldest_always_gets_on() -> None:
    assert share_prefill(100, [1000, 50, 20]) == [30, 50, 20]
    assert share_prefill(100, [1000, 500, 400]) == [25, 0, 75]


@given(st.integers(1, 600), st.lists(st.integers(1, 5000), max_size=20))
def test_shares_use_the_budget_and_no_more(budget: int, remaining: list[int]) -> None:
    shares = share_prefill(budget, remaining)
    assert sum(shares) == min(budget, sum(remaining))
    assert all(0 <= share <= left for share, left in zip(shares, remaining, strict=True))
    assert not remaining or shares[0] > 0
