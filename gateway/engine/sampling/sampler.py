"""Chooses the next token of many sequences from their logits, together.

Each request has a Sampler with a seed and counts of its own, so an answer does not depend on who
else is in the batch.
"""

from __future__ import annotations

import math
import random
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from gateway.core.errors import EngineFailed
from gateway.engine.sampling.drawing import draw
from gateway.engine.sampling.sampling import Sampling

if TYPE_CHECKING:
    from torch import Tensor


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
        self.chance = self._random.random()
        """The next number of this request's own random sequence, from [0, 1)."""
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
        self.chance = self._random.random()
        if self._constraint is not None:
            self._constraint.accept(token)
        sampling = self.sampling
        if sampling.repetition_penalty != 1.0:
            self._seen.add(token)
        if sampling.frequency_penalty or sampling.presence_penalty:
            self._counts[token] = self._counts.get(token, 0) + 1


def sample(logits: Tensor, samplers: Sequence[Sampler]) -> list[Sampled | Exception]:
    """Draw a token for each row of `logits` [rows, vocabulary], and let its sampler remember it.

    A row that cannot be drawn yields the exception; the others do not notice.
    """
    try:
        return _sample_together(logits, samplers)
    except Exception as error:  # whose fault it was shows when each is drawn alone
        if len(samplers) == 1:
            return [error]
        rows = [logits[row : row + 1] for row in range(len(samplers))]
        return [sample(own, [sampler])[0] for own, sampler in zip(rows, samplers, strict=True)]


def _sample_together(logits: Tensor, samplers: Sequence[Sampler]) -> list[Sampled | Exception]:
    best = logits.max(-1)
    chosen: list[Sampled | Exception] = [
        # Neither a NaN nor nothing but minus infinity is an answer.
        Sampled(token) if math.isfinite(value) else EngineFailed("The model gave no numbers.")
        for token, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
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
    rows = [row for row, sampler in enumerate(samplers) if not sampler.is_plain]
    scores = logits[rows].float()
    tells = [samplers[row].sampling.logprobs is not None for row in rows]
    # As the model said it: filters and penalties do not change what is told.
    raw = scores.clone() if any(tells) else scores
    for index, row in enumerate(rows):
        try:
            samplers[row].adjust(scores[index])
        except Exception as error:  # one request's fault stays with it
            chosen[row] = error
    drawn = scores.argmax(-1)
    warm = [index for index, row in enumerate(rows) if samplers[row].sampling.temperature > 0]
    if warm:
        own = [samplers[rows[index]] for index in warm]
        chance = [sampler.chance for sampler in own]
        drawn[warm] = draw(scores[warm], [sampler.sampling for sampler in own], chance)
    tokens = drawn.tolist()
    for index, row in enumerate(rows):
        if not isinstance(chosen[row], Exception):
            found = _logprob(raw[index], tokens[index], samplers[row].sampling.logprobs)
            chosen[row] = Sampled(tokens[index], found)


def _logprob(scores: Tensor, token: int, count: int | None) -> Logprob | None:
    import torch

    if count is None:
        return None
    mass = float(torch.logsumexp(scores, -1))
    values, ids = torch.topk(scores, min(count, scores.numel()))
    top = zip(ids.tolist(), (values - mass).tolist(), strict=True)
    return Logprob(float(scores[token]) - mass, tuple(top))
