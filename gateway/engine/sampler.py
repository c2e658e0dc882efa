"""Chooses the next token of many sequences from their logits, together.

Each request has a Sampler with a seed and counts of its own, so an answer does not depend on who
else is in the batch.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgspec

from gateway.core.messages import Options

if TYPE_CHECKING:
    from torch import Tensor


COLDEST = 1e-4
"""Below this a temperature is greedy: dividing by it would leave the range of a float32."""

NUCLEUS_CANDIDATES = 1024
"""Top-p looks among so many of the likeliest tokens first: to sort a vocabulary takes long."""


class Sampling(msgspec.Struct, frozen=True):
    """Resolved options: every value is there. temperature 0 is greedy; top_k 0 is off."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    logprobs: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()


def resolve_sampling(options: Options, generation_config: Any) -> Sampling:
    """Return the caller's options over the model's own defaults (its generation_config).

    A model that does not sample by default is greedy until the caller gives a temperature.
    """
    defaults = generation_config if getattr(generation_config, "do_sample", False) else None

    def pick(asked: float | None, name: str, neutral: float) -> float:
        if asked is not None:
            return asked
        own = getattr(defaults, name, None)
        return neutral if own is None else own

    temperature = pick(options.temperature, "temperature", 1.0 if defaults else 0.0)
    return Sampling(
        temperature=temperature if temperature >= COLDEST else 0.0,
        top_p=pick(options.top_p, "top_p", 1.0),
        top_k=int(pick(options.top_k, "top_k", 0)),
        min_p=pick(options.min_p, "min_p", 0.0),
        repetition_penalty=pick(options.repetition_penalty, "repetition_penalty", 1.0),
        frequency_penalty=options.frequency_penalty or 0.0,
        presence_penalty=options.presence_penalty or 0.0,
        seed=options.seed,
        logprobs=options.logprobs,
        logit_bias=options.logit_bias,
    )


class Constraint(Protocol):
    """What a token must fulfil to be allowed, such as the rest of a JSON document."""

    def restrict(self, scores: Tensor) -> None:
        """Set the scores of tokens that may not come next to minus infinity, in place."""
        ...

    def accept(self, token: int) -> None: ...


class Logprob(NamedTuple):
    """Natural logarithm of a token's probability before temperature, and the likeliest tokens'."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class Sampled(NamedTuple):
    token: int
    logprob: Logprob | None = None


class Sampler:
    """What one request asks of its tokens, and what it has said so far.

    Repetition penalty counts the prompt, as transformers does; frequency and presence penalties
    count the answer alone, as the OpenAI API defines them.
    """

    def __init__(
        self, sampling: Sampling, prompt: Sequence[int], constraint: Constraint | None = None
    ) -> None:
        self.sampling = sampling
        self._constraint = constraint
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        self._random = random.Random(seed)
        self._seen = set(prompt) if sampling.repetition_penalty != 1.0 else set()
        self._counts: dict[int, int] = {}

    @property
    def is_plain(self) -> bool:
        """Whether the likeliest token is taken, and nothing else of its probabilities matters."""
        sampling = self.sampling
        return (
            sampling.temperature == 0
            and sampling.repetition_penalty == 1.0
            and not sampling.frequency_penalty
            and not sampling.presence_penalty
            and not sampling.logit_bias
            and sampling.logprobs is None
            and self._constraint is None
        )

    def draw(self) -> float:
        """Return the next number of this request's own random sequence, from [0, 1)."""
        return self._random.random()

    def adjust(self, scores: Tensor) -> None:
        """Apply biases, penalties and the constraint to `scores` of shape [vocabulary], in place.

        As transformers does it, a positive score is divided by the repetition penalty and a
        negative one multiplied.
        """
        import torch

        sampling = self.sampling
        if sampling.logit_bias:
            ids = torch.tensor([token for token, _ in sampling.logit_bias], device=scores.device)
            biases = torch.tensor([bias for _, bias in sampling.logit_bias], device=scores.device)
            scores.index_add_(0, ids, biases.to(scores.dtype))
        if sampling.repetition_penalty != 1.0 and self._seen:
            ids = torch.tensor(sorted(self._seen), device=scores.device)
            seen, penalty = scores[ids], sampling.repetition_penalty
            scores[ids] = torch.where(seen < 0, seen * penalty, seen / penalty)
        if (sampling.frequency_penalty or sampling.presence_penalty) and self._counts:
            ids = torch.tensor(list(self._counts), device=scores.device)
            counts = torch.tensor(list(self._counts.values()), device=scores.device)
            scores[ids] -= counts * sampling.frequency_penalty + sampling.presence_penalty
        if self._constraint is not None:
            self._constraint.restrict(scores)

    def accept(self, token: int) -> None:
        """Remember that `token` was said."""
        if self._constraint is not None:
            self._constraint.accept(token)
        sampling = self.sampling
        if sampling.repetition_penalty != 1.0:
            self._seen.add(token)
        if sampling.frequency_penalty or sampling.presence_penalty:
            self._counts[token] = self._counts.get(token, 0) + 1


def sample(logits: Tensor, samplers: Sequence[Sampler]) -> list[Sampled | Exception]:
    """Draw a token for each row of `logits` [rows, vocabulary], and let its sampler remember it.

    A row whose sampler raises yields the exception; the others do not notice.
    """
    chosen: list[Sampled | Exception] = [Sampled(token) for token in logits.argmax(-1).tolist()]
    if any(not sampler.is_plain for sampler in samplers):
        _sample_special(logits, samplers, chosen)
    for row, (sampler, outcome) in enumerate(zip(samplers, chosen, strict=True)):
        if isinstance(outcome, Sampled):
            try:
                sampler.accept(outcome.token)
            except Exception as error:  # one request's fault stays with it
                chosen[row] = error
    return chosen


def _sample_special(
    logits: Tensor, samplers: Sequence[Sampler], chosen: list[Sampled | Exception]
) -> None:
    import torch

    rows = [row for row, sampler in enumerate(samplers) if not sampler.is_plain]
    raw = logits[rows].float()
    scores = raw.clone()
    for index, row in enumerate(rows):
        try:
            samplers[row].adjust(scores[index])
        except Exception as error:  # one request's fault stays with it
            chosen[row] = error
    drawn = scores.argmax(-1)
    warm = [index for index, row in enumerate(rows) if samplers[row].sampling.temperature > 0]
    if warm:
        drawn[warm] = _draw(scores[warm], [samplers[rows[index]] for index in warm])
    tokens = drawn.tolist()
    masses = torch.logsumexp(raw, -1)
    for index, row in enumerate(rows):
        if not isinstance(chosen[row], Exception):
            wanted = samplers[row].sampling.logprobs
            found = (
                None
                if wanted is None
                else _logprob(raw[index], float(masses[index]), tokens[index], wanted)
            )
            chosen[row] = Sampled(tokens[index], found)


def _logprob(scores: Tensor, mass: float, token: int, count: int) -> Logprob:
    import torch

    values, ids = torch.topk(scores, min(count, scores.numel()))
    top = zip(ids.tolist(), (values - mass).tolist(), strict=True)
    return Logprob(float(scores[token]) - mass, tuple(top))


def _draw(scores: Tensor, samplers: Sequence[Sampler]) -> Tensor:
    """Return a token for each row of `scores` [rows, vocabulary], all of them above temperature 0.

    Filters in the order of transformers: temperature, top-k, top-p, min-p.
    """
    import torch

    options = [sampler.sampling for sampler in samplers]
    scores = scores / _column(scores, [option.temperature for option in options])
    if any(0 < option.top_k < scores.shape[1] for option in options):
        _keep_top_k(scores, [option.top_k for option in options])
    if any(option.top_p < 1.0 for option in options):
        _keep_nucleus(scores, [option.top_p for option in options])
    probabilities = torch.softmax(scores, dim=-1)
    if any(option.min_p > 0.0 for option in options):
        least = probabilities.amax(-1, keepdim=True) * _column(
            scores, [option.min_p for option in options]
        )
        probabilities.masked_fill_(probabilities < least, 0.0)
    # Inverse of the distribution: a number for each row is all the chance there is.
    mass = probabilities.double().cumsum(-1)
    drawn = torch.tensor([sampler.draw() for sampler in samplers], dtype=mass.dtype)
    target = drawn.to(mass.device)[:, None] * mass[:, -1:]
    return torch.searchsorted(mass, target, right=True)[:, 0].clamp_(max=scores.shape[1] - 1)


def _keep_top_k(scores: Tensor, counts: list[int]) -> None:
    import torch

    size = scores.shape[1]
    counts = [count if 0 < count < size else 0 for count in counts]
    best = torch.topk(scores, max(counts)).values
    for row, count in enumerate(counts):
        if count:
            scores[row].masked_fill_(scores[row] < best[row, count - 1], -torch.inf)


def _keep_nucleus(scores: Tensor, masses: list[float]) -> None:
    """Mask all but the smallest set of tokens whose probabilities reach each row's mass."""
    import torch

    rows = [row for row, mass in enumerate(masses) if mass < 1.0]
    wanted = _column(scores, [masses[row] for row in rows])
    total = torch.logsumexp(scores[rows], -1, keepdim=True)
    size = scores.shape[1]
    for count in (min(NUCLEUS_CANDIDATES, size), size):
        best, order = torch.topk(scores[rows], count)
        reached = torch.exp(best - total).cumsum(-1)
        if count == size or bool((reached[:, -1:] >= wanted).all()):
            break
    outside = reached - torch.exp(best - total) >= wanted
    outside[:, 0] = False
    kept = torch.full_like(scores[rows], -torch.inf)
    scores[rows] = kept.scatter_(1, order, best.masked_fill(outside, -torch.inf))


def _column(like: Tensor, values: Sequence[float]) -> Tensor:
    import torch

    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]
