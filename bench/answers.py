"""What a run of streams was like: pieces of text and when they came, and the figures made of it.

Only the standard library: peers import this in environments of their own.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise


@dataclass
class Answer:
    """One stream: seconds from the beginning of the run to each piece, and what was counted."""

    times_s: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass
class Figures:
    """One run: times are seconds, memory is the peak of the resident set in bytes."""

    tokens_per_s: float
    ttft_p50_s: float
    ttft_p95_s: float
    gap_p99_s: float
    peak_bytes: float


class Incomplete(Exception):
    """An answer lacks tokens, or its prompt does."""


def check(answers: Sequence[Answer], prompts: Sequence[str], new_tokens: int) -> None:
    """Raise Incomplete unless every prompt was read and answered whole."""
    if len(answers) != len(prompts):
        raise Incomplete(f"{len(answers)} answers to {len(prompts)} prompts")
    for answer, prompt in zip(answers, prompts, strict=True):
        if answer.completion_tokens != new_tokens:
            raise Incomplete(f"{answer.completion_tokens} of {new_tokens} tokens came")
        asked = len(prompt.split())
        if answer.prompt_tokens != asked:
            raise Incomplete(f"{answer.prompt_tokens} of {asked} prompt tokens were read")
        # Two tokens may come as one piece of text; most must come one by one.
        if len(answer.times_s) < new_tokens // 2:
            raise Incomplete(f"{new_tokens} tokens came in {len(answer.times_s)} pieces")


def describe(answers: Sequence[Answer], peak_bytes: int) -> Figures:
    """Return the figures of one run; it ends with the last piece of the last stream."""
    firsts = [answer.times_s[0] for answer in answers]
    gaps = [later - earlier for answer in answers for earlier, later in pairwise(answer.times_s)]
    tokens = sum(answer.completion_tokens for answer in answers)
    return Figures(
        tokens_per_s=tokens / max(answer.times_s[-1] for answer in answers),
        ttft_p50_s=quantile(firsts, 0.5),
        ttft_p95_s=quantile(firsts, 0.95),
        gap_p99_s=quantile(gaps, 0.99),
        peak_bytes=peak_bytes,
    )


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` of them do not exceed; nan of none."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def median(runs: Sequence[Figures]) -> Figures:
    """Return the median of each figure by itself."""
    rows = [asdict(run) for run in runs]
    return Figures(**{name: statistics.median(row[name] for row in rows) for name in rows[0]})
