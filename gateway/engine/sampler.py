"""Chooses the next token from logits. One sampler a request: its seed and counts are its own."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.core.messages import Options

if TYPE_CHECKING:
    from torch import Tensor


COLDEST = 1e-4
"""Below this a temperature is greedy: dividing by it would leave the range of a float32."""


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
    )


class Sampler:
    """Draws one token at a time from float logits of shape [vocabulary].

    Repetition penalty counts the prompt, as transformers does; frequency and presence penalties
    count the answer alone, as the OpenAI API defines them.
    """

    def __init__(self, sampling: Sampling, prompt: list[int]) -> None:
        import torch

        self._sampling = sampling
        self._generator = torch.Generator()
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        self._generator.manual_seed(seed)
        self._seen = set(prompt)
        self._counts: dict[int, int] = {}

    def next_token(self, logits: Tensor) -> int:
        """Return the id drawn from `logits` and remember it."""
        scores = self._penalised(logits.float().cpu())
        token = int(scores.argmax()) if self._sampling.temperature == 0 else self._draw(scores)
        self._seen.add(token)
        self._counts[token] = self._counts.get(token, 0) + 1
        return token

    def _penalised(self, scores: Tensor) -> Tensor:
        import torch

        sampling = self._sampling
        if sampling.repetition_penalty != 1.0 and self._seen:
            ids = torch.tensor(sorted(self._seen))
            seen = scores[ids]
            penalty = sampling.repetition_penalty
            scores = scores.index_copy(
                0, ids, torch.where(seen < 0, seen * penalty, seen / penalty)
            )
        if (sampling.frequency_penalty or sampling.presence_penalty) and self._counts:
            ids = torch.tensor(list(self._counts))
            counts = torch.tensor(list(self._counts.values()), dtype=scores.dtype)
            penalties = counts * sampling.frequency_penalty + sampling.presence_penalty
            scores = scores.index_add(0, ids, -penalties)
        return scores

    def _draw(self, scores: Tensor) -> int:
        import torch

        sampling = self._sampling
        scores = scores / sampling.temperature
        if 0 < sampling.top_k < scores.numel():
            floor = torch.topk(scores, sampling.top_k).values[-1]
            scores = scores.masked_fill(scores < floor, -torch.inf)
        if sampling.top_p < 1.0:
            scores = _keep_nucleus(scores, sampling.top_p)
        probabilities = torch.softmax(scores, dim=-1)
        if sampling.min_p > 0.0:
            floor = probabilities.max() * sampling.min_p
            probabilities = probabilities.masked_fill(probabilities < floor, 0.0)
        return int(torch.multinomial(probabilities, 1, generator=self._generator))


def _keep_nucleus(scores: Tensor, top_p: float) -> Tensor:
    """Mask all but the smallest set of tokens whose probabilities reach `top_p`."""
    import torch

    ordered, order = torch.sort(scores, descending=True)
    mass = torch.softmax(ordered, dim=-1).cumsum(dim=-1)
    outside = mass - torch.softmax(ordered, dim=-1) >= top_p
    outside[0] = False
    return scores.masked_fill(torch.zeros_like(outside).scatter(0, order, outside), -torch.inf)
