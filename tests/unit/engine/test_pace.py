from hypothesis import given
from hypothesis import strategies as st

from gateway.engine.decoding.pace import MAX_PREFILL, MIN_PREFILL, STALL_STEPS, Pace, share_prefill


def test_alone_prompts_take_the_largest_chunk() -> None:
    assert Pace().prefill_tokens(decodes=False) == MAX_PREFILL


def test_beside_decoding_a_chunk_takes_no_longer_than_a_few_steps() -> None:
    pace = Pace()
    pace.observe_step(0, 0.020)
    pace.observe_step(100, 0.020 + 0.050)  # 0.5 ms a prompt token
    assert pace.prefill_tokens(decodes=True) == STALL_STEPS * 0.020 / 0.0005


def test_before_anything_is_known_a_chunk_is_small() -> None:
    assert Pace().prefill_tokens(decodes=True) == MIN_PREFILL


def test_a_step_is_guessed_while_there_are_always_prompts() -> None:
    pace = Pace()
    pace.observe_step(512, 0.512)  # prompts alone: 1 ms a token
    pace.observe_step(32, 0.032 + 0.030)
    assert pace.prefill_tokens(decodes=True) == int(STALL_STEPS * 0.030 / 0.001)


def test_a_few_cold_tokens_do_not_keep_chunks_small() -> None:
    pace = Pace()
    pace.observe_step(8, 0.080)
    pace.observe_step(0, 0.030)
    pace.observe_step(512, 0.512)
    assert pace.prefill_tokens(decodes=True) > 75


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
