"""Gaps between the pieces of an answer, as a tally sees them."""

from gateway.core.events import Finished, Routed, Started, TextDelta, ToolCallDelta, Usage, Waiting
from gateway.core.gaps import GAP_BOUNDS
from gateway.core.messages import ToolCall
from gateway.core.names import ModelRef
from gateway.services.tally import Tally

REF = ModelRef("p", "m")


def test_a_gap_lies_between_two_pieces_and_none_before_the_first() -> None:
    tally = Tally(opened_at=0.0)
    call = ToolCallDelta(0, ToolCall("1", "f", "{}"))
    events = [
        *((Routed(REF), 0.0), (Waiting("loading"), 50.0), (Started(REF), 60.0)),
        *((TextDelta("a"), 61.0), (TextDelta("b"), 61.015), (call, 63.0)),
    ]
    for event, at in events:
        tally.observe((event,), at)
    assert sum(tally.gaps.counts) == 2
    assert tally.gaps.counts[GAP_BOUNDS.index(0.02)] == 1
    assert tally.gaps.counts[GAP_BOUNDS.index(2.56)] == 1
    assert round(tally.gaps.total_s, 6) == 2.0


def test_what_is_longer_than_every_bound_is_counted_too() -> None:
    tally = Tally(opened_at=0.0)
    for at in (0.0, 1000.0):
        tally.observe((TextDelta("a"),), at)
    assert tally.gaps.counts[-1] == 1


def test_pieces_that_came_together_have_gaps_of_no_time_between_them() -> None:
    tally = Tally(opened_at=0.0)
    tally.observe((Started(REF), TextDelta("a"), TextDelta("b")), 1.0)
    tally.observe((TextDelta("c"), TextDelta("d", 2), Finished("stop", Usage())), 1.03)
    assert tally.gaps.counts[0] == 2
    assert tally.gaps.counts[GAP_BOUNDS.index(0.04)] == 1
    assert sum(tally.gaps.counts) == 3
    assert tally.said_tokens == 5
