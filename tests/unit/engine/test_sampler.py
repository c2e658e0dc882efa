import pytest

from gateway.core.messages import Options
from gateway.engine.sampler import Sampler, Sampling, resolve_sampling

torch = pytest.importorskip("torch")


def draw(sampling: Sampling, logits: list[float], count: int = 200) -> list[int]:
    sampler = Sampler(sampling, prompt=[])
    return [sampler.next_token(torch.tensor(logits)) for _ in range(count)]


def test_temperature_zero_takes_the_likeliest() -> None:
    assert set(draw(Sampling(temperature=0), [0.1, 3.0, 2.9])) == {1}


def test_one_seed_gives_one_sequence_and_another_seed_another() -> None:
    logits = [0.1] * 50
    first = draw(Sampling(seed=7), logits)
    assert first == draw(Sampling(seed=7), logits)
    assert first != draw(Sampling(seed=8), logits)


def test_without_a_seed_sequences_differ() -> None:
    assert draw(Sampling(), [0.0] * 50) != draw(Sampling(), [0.0] * 50)


def test_top_k_keeps_the_k_likeliest() -> None:
    assert set(draw(Sampling(top_k=2, seed=1), [5.0, 4.9, 4.8, 4.7])) == {0, 1}


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    # Probabilities 0.5, 0.3, 0.2: the first two reach 0.6.
    logits = torch.tensor([0.5, 0.3, 0.2]).log().tolist()
    assert set(draw(Sampling(top_p=0.6, seed=1), logits)) == {0, 1}
    assert set(draw(Sampling(top_p=0.01, seed=1), logits)) == {0}


def test_min_p_drops_what_is_far_less_likely_than_the_best() -> None:
    logits = torch.tensor([0.6, 0.3, 0.1]).log().tolist()
    assert set(draw(Sampling(min_p=0.4, seed=1), logits)) == {0, 1}


def test_a_frequency_penalty_moves_on_from_what_was_said() -> None:
    greedy = Sampling(temperature=0, frequency_penalty=1.0)
    assert draw(greedy, [1.0, 0.5, 0.0], count=3) == [0, 1, 0]


def test_a_presence_penalty_counts_once() -> None:
    greedy = Sampling(temperature=0, presence_penalty=0.8)
    assert draw(greedy, [1.0, 0.5, 0.0], count=4) == [0, 1, 0, 0]


def test_a_repetition_penalty_counts_the_prompt() -> None:
    sampler = Sampler(Sampling(temperature=0, repetition_penalty=4.0), prompt=[0])
    assert sampler.next_token(torch.tensor([2.0, 1.0, -1.0])) == 1


def test_a_model_that_does_not_sample_is_greedy_until_asked() -> None:
    config = type("Config", (), {"do_sample": False, "temperature": 0.9, "top_k": 5})()
    assert resolve_sampling(Options(), config) == Sampling(temperature=0)
    assert resolve_sampling(Options(temperature=0.5), config).temperature == 0.5


def test_a_model_that_samples_gives_its_defaults() -> None:
    config = type("Config", (), {"do_sample": True, "temperature": 0.6, "top_p": 0.9})()
    assert resolve_sampling(Options(), config) == Sampling(temperature=0.6, top_p=0.9)
    assert resolve_sampling(Options(temperature=0), config).temperature == 0


@pytest.mark.parametrize("coldest", [1e-40, 1e-5, 0.0])
def test_a_temperature_near_zero_is_greedy(coldest: float) -> None:
    config = type("Config", (), {"do_sample": True, "temperature": 0.6})()
    sampling = resolve_sampling(Options(temperature=coldest), config)
    assert set(draw(sampling, [0.1, 3.0, 2.9])) == {1}
