import math

import pytest

from gateway.core.errors import EngineFailed
from gateway.core.messages import Options
from gateway.engine.sampling import drawing
from gateway.engine.sampling.sampler import Sampled, Sampler, sample
from gateway.engine.sampling.sampling import Sampling, resolve_sampling

torch = pytest.importorskip("torch")


def draw(sampling: Sampling, logits: list[float], count: int = 200) -> list[int]:
    sampler = Sampler(sampling, prompt=[])
    return [next_token(sampler, logits) for _ in range(count)]


def next_token(sampler: Sampler, logits: list[float]) -> int:
    outcome = sample(torch.tensor([logits]), [sampler])[0]
    assert isinstance(outcome, Sampled)
    return outcome.token


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
    assert next_token(sampler, [2.0, 1.0, -1.0]) == 1


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


VARIETY = [
    Sampling(temperature=0),
    Sampling(temperature=0, frequency_penalty=1.0),
    Sampling(seed=1),
    Sampling(temperature=0.7, top_k=5, seed=2),
    Sampling(top_p=0.8, seed=3),
    Sampling(min_p=0.1, seed=4),
    Sampling(temperature=1.5, top_p=0.9, top_k=30, repetition_penalty=1.2, seed=5),
    Sampling(logit_bias=((3, 5.0),), logprobs=2, seed=6),
    Sampling(temperature=0.9, top_k=40, top_p=0.95, min_p=0.02, seed=7),
]


def test_everybody_draws_in_company_what_he_would_draw_alone() -> None:
    steps = torch.randn(30, len(VARIETY), 700, generator=torch.Generator().manual_seed(0))
    together = [Sampler(sampling, prompt=[1, 2]) for sampling in VARIETY]
    in_company = [sample(step, together) for step in steps]
    for row, sampling in enumerate(VARIETY):
        alone = Sampler(sampling, prompt=[1, 2])
        for step, outcomes in zip(steps, in_company, strict=True):
            outcome, other = sample(step[row : row + 1], [alone])[0], outcomes[row]
            assert isinstance(outcome, Sampled) and isinstance(other, Sampled)
            assert outcome.token == other.token


@pytest.mark.parametrize("sampling", [s for s in VARIETY if s.temperature > 0])
def test_draws_follow_the_distribution_that_transformers_would_draw_from(
    sampling: Sampling,
) -> None:
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    size = 300
    logits = torch.randn(1, size, generator=torch.Generator().manual_seed(1)) * 2
    warpers = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        warpers.append(MinPLogitsWarper(sampling.min_p))
    scores = logits.clone()
    for token, bias in sampling.logit_bias:
        scores[0, token] += bias
    prompt = torch.tensor([[1, 2]])
    if sampling.repetition_penalty != 1.0:
        scores = RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)(prompt, scores)
    expected = torch.softmax(warpers(prompt, scores), -1)[0]
    count = 4000
    samplers = [
        # Each a request of its own: what one says must not change what it says next.
        Sampler(Sampling(**{f: getattr(sampling, f) for f in FIELDS} | {"seed": n}), [1, 2])
        for n in range(count)
    ]
    outcomes = sample(logits.expand(count, -1), samplers)
    tokens = torch.tensor([o.token for o in outcomes if isinstance(o, Sampled)])
    found = torch.bincount(tokens, minlength=size) / count
    assert not found[expected == 0].any()
    # Those that are seldom drawn count as one. Six standard deviations: a fair sampler fails once
    # in hundreds of millions of draws.
    often = expected * count >= 20
    found = torch.cat((found[often], found[~often].sum()[None]))
    expected = torch.cat((expected[often], expected[~often].sum()[None]))
    assert ((found - expected).abs() <= 6 * (expected / count).sqrt() + 1e-9).all()


FIELDS = Sampling.__struct_fields__


def test_a_nucleus_wider_than_the_candidates_is_still_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(drawing, "CANDIDATES", (4, 8))
    assert set(draw(Sampling(top_p=0.999, seed=1), [0.0] * 40, count=600)) == set(range(40))


def test_log_probabilities_are_those_of_the_model_whatever_the_temperature() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    sampler = Sampler(Sampling(temperature=0, logprobs=2), prompt=[])
    (outcome,) = sample(logits, [sampler])
    assert isinstance(outcome, Sampled) and outcome.logprob is not None
    assert outcome.logprob.logprob == pytest.approx(torch.tensor(0.5).log().item())
    assert [token for token, _ in outcome.logprob.top] == [0, 1]
    assert outcome.logprob.top[1][1] == pytest.approx(torch.tensor(0.3).log().item())


def test_a_bias_can_forbid_and_force() -> None:
    assert set(draw(Sampling(logit_bias=((1, -100.0),), seed=1), [0.0, 9.0, 0.0])) == {0, 2}
    assert set(draw(Sampling(logit_bias=((2, 100.0),), seed=1), [0.0, 9.0, 0.0])) == {2}


class Broken:
    def restrict(self, scores: object) -> None:
        raise RuntimeError("no such grammar")

    def accept(self, token: int) -> None: ...


def test_a_request_that_fails_fails_alone() -> None:
    broken, fine = Sampler(Sampling(temperature=0), [], Broken()), Sampler(Sampling(seed=1), [])
    outcomes = sample(torch.tensor([[1.0, 0.0], [0.0, 100.0]]), [broken, fine])
    assert isinstance(outcomes[0], RuntimeError)
    assert outcomes[1] == Sampled(1)


@pytest.mark.parametrize("options", [{}, {"top_k": 5}, {"top_p": 0.5}, {"min_p": 0.5}])
@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_scores_that_are_no_numbers_lead_to_no_token(
    options: dict[str, float], score: float
) -> None:
    import torch

    # No multiple of the parts in which a vocabulary is looked at.
    logits = torch.full((1, drawing.PART_TOKENS + 3), score)
    for seed in range(20):
        sampler = Sampler(Sampling(temperature=1.0, seed=seed, **options), [])  # type: ignore[arg-type]
        (outcome,) = sample(logits, [sampler])
        assert isinstance(outcome, EngineFailed)


@pytest.mark.parametrize("sampling", [Sampling(temperature=0), Sampling(seed=1, top_k=5)])
@pytest.mark.parametrize("number", [float("nan"), float("-inf")])
def test_what_is_no_number_is_no_answer(sampling: Sampling, number: float) -> None:
    rows = torch.tensor([[number] * 8, [0.0, 1.0] * 4])
    broken, fine = sample(rows, [Sampler(sampling, []), Sampler(sampling, [])])
    assert isinstance(broken, EngineFailed)
    assert isinstance(fine, Sampled)
