"""Draws tokens from the distributions of many requests at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gateway.engine.sampling.sampling import Sampling

if TYPE_CHECKING:
    from torch import Tensor

CANDIDATES = (64, 1024)
"""Top-k and top-p look among so many of the likeliest tokens first: to sort a vocabulary takes
long, and they seldom keep more."""

PART_TOKENS = 256


def draw(scores: Tensor, options: Sequence[Sampling], chances: Sequence[float]) -> Tensor:
    """Return a token for each row of `scores` [rows, vocabulary], all of them above temperature 0.

    Filters in the order of transformers: temperature, top-k, top-p, min-p. A number from [0, 1)
    for each row is all the chance there is; what a row draws depends on no other row.
    """
    import torch

    scores = scores / _column(scores, [option.temperature for option in options])
    chance = torch.tensor(chances, dtype=torch.float64, device=scores.device)
    tokens = torch.empty(len(options), dtype=torch.long, device=scores.device)
    size = scores.shape[1]
    among_all = [row for row, option in enumerate(options) if not _is_filtered(option, size)]
    if among_all:
        own = [options[row] for row in among_all]
        tokens[among_all] = _draw_among_all(scores[among_all], own, chance[among_all])
    left = [row for row in range(len(options)) if row not in among_all]
    for count in (*(count for count in CANDIDATES if count < size), size):
        if not left:
            break
        own = [options[row] for row in left]
        found, is_enough = _draw_among_best(scores[left], own, chance[left], count)
        tokens[left] = found
        left = [row for row, enough in zip(left, is_enough, strict=True) if not enough]
    return tokens


def _is_filtered(option: Sampling, size: int) -> bool:
    return option.top_p < 1.0 or 0 < option.top_k < size


def _draw_among_all(scores: Tensor, options: list[Sampling], chance: Tensor) -> Tensor:
    import torch

    masses = torch.exp(scores - scores.amax(-1, keepdim=True))
    if any(option.min_p > 0.0 for option in options):
        masses.masked_fill_(masses < _column(masses, [o.min_p for o in options]), 0.0)
    # In two steps, the part of the vocabulary and the token in it: a running sum over all of it
    # takes many times as long.
    padded = torch.nn.functional.pad(masses, (0, -masses.shape[1] % PART_TOKENS))
    parts = padded.view(len(options), -1, PART_TOKENS)
    reached = parts.sum(-1, dtype=torch.float64).cumsum(-1)
    target = chance * reached[:, -1]
    part = torch.searchsorted(reached, target[:, None], right=True).clamp_(max=reached.shape[1] - 1)
    before = torch.nn.functional.pad(reached, (1, 0)).gather(1, part)
    rows = torch.arange(len(options), device=scores.device)
    within = parts[rows, part[:, 0]]
    drawn = part[:, 0] * PART_TOKENS + _invert(within, target - before[:, 0])
    # Scores that are not numbers lead anywhere: never to a token that there is not.
    return drawn.clamp_(max=scores.shape[1] - 1)


def _draw_among_best(
    scores: Tensor, options: list[Sampling], chance: Tensor, count: int
) -> tuple[Tensor, list[bool]]:
    """Draw among the `count` likeliest; tell for each row whether they hold all that its filters
    keep, without which the draw does not count."""
    import torch

    best, order = torch.topk(scores, count)
    top_k = _column(best, [o.top_k if 0 < o.top_k < scores.shape[1] else 0 for o in options])
    has_top_k = top_k > 0
    places = torch.arange(count, device=best.device)
    best = best.masked_fill(has_top_k & (places >= top_k), -torch.inf)
    total = torch.where(
        has_top_k,
        torch.logsumexp(best, -1, keepdim=True),
        torch.logsumexp(scores, -1, keepdim=True),
    )
    masses = torch.exp(best - total)
    reached = masses.cumsum(-1)
    top_p = _column(best, [option.top_p for option in options])
    outside = (reached - masses >= top_p) & (top_p < 1.0)
    least = _column(masses, [option.min_p for option in options]) * masses[:, :1]
    outside |= masses < least
    outside[:, 0] = False
    is_enough = torch.where(has_top_k, top_k <= count, reached[:, -1:] >= top_p)[:, 0]
    kept = masses.masked_fill(outside, 0.0)
    target = chance * kept.sum(-1, dtype=torch.float64)
    drawn = order.gather(1, _invert(kept, target)[:, None])[:, 0]
    return drawn, (is_enough | (count == scores.shape[1])).tolist()


def _invert(masses: Tensor, target: Tensor) -> Tensor:
    """Return for each row the index where the running sum of `masses` passes `target`."""
    import torch

    reached = masses.to(torch.float64).cumsum(-1)
    found = torch.searchsorted(reached, target[:, None], right=True)[:, 0]
    # Rounding may leave the target at the very end: then it is the last that can be drawn.
    last = masses.shape[1] - 1 - (masses.flip(-1) > 0).int().argmax(-1)
    return torch.minimum(found, last)


def _column(like: Tensor, values: Sequence[float]) -> Tensor:
    import torch

    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]
