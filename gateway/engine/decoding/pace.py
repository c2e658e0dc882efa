"""How fast a model is, as its steps show, and what follows from it. Pure: times are handed in."""

from collections.abc import Sequence

STALL_STEPS = 3.0
"""A step that also computes prompts may take as long as so many that only decode, and one."""
MIN_PREFILL = 32
MAX_PREFILL = 512
"""Prompt tokens of one step, over all prompts."""
OLDEST_SHARE = 0.25
"""Of them, what the prompt that waits longest gets at least."""
WEIGHT = 0.2
"""Of the newest observation in an average."""


class Pace:
    """Averages of what steps and sequences took, in seconds."""

    def __init__(self) -> None:
        self._step_s: float | None = None
        self._prompts_s = 0.0
        self._prompt_tokens = 0.0
        self._service_s: float | None = None

    def observe_step(self, prompt_tokens: int, seconds: float) -> None:
        """Take note of a step that computed `prompt_tokens` beside what it decoded.

        While there are always prompts no step only decodes, and then what such a step would take
        is what a step takes beyond its prompts: without a guess chunks would stay at their least.
        """
        if not prompt_tokens:
            self._step_s = _average(self._step_s, seconds)
        elif self._step_s is None and self._prompt_token_s is not None:
            self._step_s = max(seconds - prompt_tokens * self._prompt_token_s, 0.0)
        else:
            # Old and new are weighed by their tokens, too: a few cold ones tell little.
            kept = 1 - WEIGHT
            self._prompts_s = kept * self._prompts_s + max(seconds - (self._step_s or 0.0), 0.0)
            self._prompt_tokens = kept * self._prompt_tokens + prompt_tokens

    @property
    def _prompt_token_s(self) -> float | None:
        return self._prompts_s / self._prompt_tokens if self._prompt_tokens else None

    def observe_service(self, seconds: float) -> None:
        """Take note of how long a sequence had its place."""
        self._service_s = _average(self._service_s, seconds)

    def prefill_tokens(self, *, decodes: bool) -> int:
        """Return how many prompt tokens the next step may hold, if others decode or none does."""
        if not decodes:
            return MAX_PREFILL
        if not self._step_s or not self._prompt_token_s:
            return MIN_PREFILL
        fitting = int(STALL_STEPS * self._step_s / self._prompt_token_s)
        return max(MIN_PREFILL, min(fitting, MAX_PREFILL))

    def eta_s(self, position: int, places: int) -> float | None:
        """Return how long the one at `position` in the queue (from 1) will wait; None: unknown."""
        if self._service_s is None:
            return None
        return round(self._service_s * position / places, 1)


def share_prefill(budget: int, remaining: Sequence[int]) -> list[int]:
    """Divide `budget` tokens among prompts of which so many are `remaining`, oldest first.

    The shortest goes first, so that a long prompt keeps nobody waiting; the oldest has a share of
    its own, so that it is not kept waiting for ever.
    """
    shares = [0] * len(remaining)
    if not remaining:
        return shares
    shares[0] = min(remaining[0], max(1, int(budget * OLDEST_SHARE)))
    budget -= shares[0]
    for index in sorted(range(len(remaining)), key=remaining.__getitem__):
        more = min(remaining[index] - shares[index], budget)
        shares[index] += more
        budget -= more
    return shares


def _average(old: float | None, new: float) -> float:
    return new if old is None else old + WEIGHT * (new - old)
