"""Chooses which inputs are computed together. Pure: computes nothing itself."""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from heapq import merge
from itertools import islice

SMALL_GAP = 16
"""Tokens of padding that are never too many: a short input fills no processor by itself."""


def choose_batch(queues: Sequence[Sequence[int]], budget_tokens: int) -> list[slice]:
    """Return the part of each queue that makes the next batch.

    A queue is the lengths of one request's inputs, shortest first; none is empty. The first has
    its turn: its longest input is in the batch, whatever the budget. The longest of the others
    that fit beside it, padding counted, fill the batch up; what would be padding for a quarter of
    its row waits for company of its own length.
    """
    longest = queues[0][-1]
    shortest = min(longest * 3 // 4, longest - SMALL_GAP)
    room = max(1, budget_tokens // longest)
    stops = [bisect_right(queue, longest) for queue in queues]
    candidates = (
        _downwards(queue, number, bisect_left(queue, shortest), stops[number])
        for number, queue in enumerate(queues)
    )
    taken = Counter(number for _, number in islice(merge(*candidates), room))
    return [slice(stop - taken[number], stop) for number, stop in enumerate(stops)]


def _downwards(
    queue: Sequence[int], number: int, start: int, stop: int
) -> Iterator[tuple[int, int]]:
    for index in range(stop - 1, start - 1, -1):
        yield -queue[index], number
