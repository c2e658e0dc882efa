"""How fast a model is, as its steps show, and what follows from it. Pure: times are handed in."""

from collections import deque
from collections.abc import Sequence
from itertools import combinations
from statistics import median_low

STALL_STEPS = 3.0
"""Prompts beside decoding may take as long as so many steps of those who decode would."""
MIN_PREFILL = 32
MAX_PREFILL = 512
"""Prompt tokens of one step, over all prompts."""
OLDEST_SHARE = 0.25
"""Of them, what the prompt that waits longest gets at least."""
WEIGHT = 0.2
"""Of the newest observation in an average."""
LATEST = 5
"""Steps of like size that are remembered."""


class Pace:
    """What steps and sequences took, in seconds."""

    def __init__(self) -> None:
        self._decoding = _Costs()
        self._prompts = _Costs()
        self._service_s: float | None = None

    def observe_step(self, decoding: int, prompt_tokens: int, seconds: float) -> None:
        """Take note of a step of so many sequences that decoded and so many tokens of prompts.

        While there are always prompts no step only decodes, and then what such a step would take
        is what a step takes beyond its prompts: without a guess chunks would stay at their least.
        """
        if not prompt_tokens:
            self._decoding.observe(decoding, seconds)
        elif decoding and not self._decoding and (token_s := self._prompts.each_s()):
            self._decoding.observe(decoding, max(seconds - prompt_tokens * token_s, 0.0))
        else:
            beside_s = self._decoding.at_least_s(decoding)
            self._prompts.observe(prompt_tokens, max(seconds - beside_s, 0.0))

    def observe_service(self, seconds: float) -> None:
        """Take note of how long a sequence had its place."""
        self._service_s = _average(self._service_s, seconds)

    def prefill_tokens(self, decoding: int) -> int:
        """Return how many prompt tokens a step may hold in which so many sequences decode.

        They take no longer than STALL_STEPS steps without them, beside what it costs to have any.
        """
        if not decoding:
            return MAX_PREFILL
        step_s, token_s = self._decoding.at_least_s(decoding), self._prompts.each_s()
        if not step_s or not token_s:
            return MIN_PREFILL
        return max(MIN_PREFILL, min(int(STALL_STEPS * step_s / token_s), MAX_PREFILL))

    def eta_s(self, position: int, places: int) -> float | None:
        """Return how long the one at `position` in the queue (from 1) will wait; None: unknown."""
        if self._service_s is None:
            return None
        return round(self._service_s * position / places, 1)


class _Costs:
    """What was taken for so many of a kind, by classes of size: each power of two is one.

    A class stands for itself by the median of its latest observations: the first ones are cold, and
    others on the machine disturb some.
    """

    def __init__(self) -> None:
        self._classes: dict[int, deque[tuple[int, float]]] = {}

    def __bool__(self) -> bool:
        return bool(self._classes)

    def observe(self, count: int, seconds: float) -> None:
        size = count.bit_length()
        self._classes.setdefault(size, deque(maxlen=LATEST)).append((count, seconds))

    def at_least_s(self, count: int) -> float:
        """Return what so many take, between those that were seen; else no more than they may.

        More take at least as long as the most that were seen, and fewer their share of the fewest,
        if there is a part that does not depend on the count. 0 where nothing was seen.
        """
        known = self._medians()
        if not known:
            return 0.0
        before, before_s = 0, 0.0
        for more, more_s in known:
            if count <= more:
                share = (count - before) / (more - before)
                return before_s + share * (more_s - before_s)
            before, before_s = more, more_s
        return before_s

    def each_s(self) -> float:
        """Return what one more takes: the median of the slopes between any two that were seen
        (Theil and Sen), nothing for none being one. 0: unknown.

        So it is no less than in truth where any at all cost something, and one class that is known
        from cold steps alone does not spoil it.
        """
        known = [(0, 0.0), *self._medians()]
        slopes = [
            (more_s - fewer_s) / (more - fewer)
            for (fewer, fewer_s), (more, more_s) in combinations(known, 2)
        ]
        return max(median_low(slopes), 0.0) if slopes else 0.0

    def _medians(self) -> list[tuple[int, float]]:
        latest = (sorted(seen, key=_seconds) for _, seen in sorted(self._classes.items()))
        return [seen[(len(seen) - 1) // 2] for seen in latest]


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


def _seconds(seen: tuple[int, float]) -> float:
    return seen[1]
