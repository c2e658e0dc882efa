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
    its turn: its longest input is in the batch, whatever the budget. Others of about its length,
    the longest first, fill the budget up, padding counted; an input that would be padded by more
    than a third of its length waits for better company, unless it is short.
    """
    turn = queues[0][-1]
    longest = max(_longest_within(queue, max(turn * 4 // 3, turn + SMALL_GAP)) for queue in queues)
    shortest = min(longest * 3 // 4, longest - SMALL_GAP)
    stops = [bisect_right(queue, longest) for queue in queues]
    candidates = (
        # The last of the first queue is in already.
        _downwards(queue, number, bisect_left(queue, shortest), stops[number] - (number == 0))
        for number, queue in enumerate(queues)
    )
    others = islice(merge(*candidates), max(0, budget_tokens // longest - 1))
    taken = Counter([0, *(number for _, number in others)])
    return [slice(stop - taken[number], stop) for number, stop in enumerate(stops)]


def _longest_within(queue: Sequence[int], most: int) -> int:
    place = bisect_right(queue, most)
    return queue[place - 1] if place else 0


def _downwards(
    queue: Sequence[int], number: int, start: int, stop: int
) -> Iterator[tuple[int, int]]:
    for index in range(stop - 1, start - 1, -1):
        yield -queue[index], number
