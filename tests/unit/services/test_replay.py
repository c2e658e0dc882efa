"""ReplayBuffer: numbers, bounds, and going back."""

import pytest

from gateway.core.errors import InvalidRequest, StreamGap
from gateway.core.events import Event, TextDelta, TokenLogprob, ToolCallDelta
from gateway.core.messages import ToolCall
from gateway.services.replay import EVENT_BYTES, ReplayBuffer, weigh

CALL = ToolCall("c", "look", "{}")


def filled(
    count: int, *, max_events: int = 100, max_bytes: int = 2**20, keeps: bool = True
) -> ReplayBuffer:
    buffer = ReplayBuffer(max_events=max_events, max_bytes=max_bytes, keeps=keeps)
    for number in range(1, count + 1):
        buffer.append(TextDelta(str(number)))
    return buffer


def texts(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, TextDelta)]


def test_events_are_read_once_in_their_order() -> None:
    buffer = filled(5)
    assert texts(buffer.take(2)) == ["1", "2"]
    assert texts(buffer.take(9)) == ["3", "4", "5"]
    assert buffer.take(9) == []
    assert buffer.position == buffer.last_id == 5


@pytest.mark.parametrize("read", [0, 3, 6])
@pytest.mark.parametrize("after", range(7))
def test_reading_goes_on_after_any_event_that_is_kept(read: int, after: int) -> None:
    buffer = filled(6)
    buffer.take(read)
    size = buffer.size_bytes
    buffer.seek(after)
    assert texts(buffer.take(9)) == [str(number) for number in range(after + 1, 7)]
    assert buffer.size_bytes == size


def test_what_was_read_is_dropped_beyond_the_bound_and_what_was_not_is_kept() -> None:
    buffer = filled(6, max_events=4)
    assert buffer.last_id == 6
    buffer.take(5)
    buffer.seek(2)
    with pytest.raises(StreamGap, match=r"1 to 2"):
        buffer.seek(0)
    assert texts(buffer.take(9)) == ["3", "4", "5", "6"]


@pytest.mark.parametrize("keeps", [True, False])
def test_what_is_read_as_it_comes_is_as_if_it_had_been_unread_before(keeps: bool) -> None:
    said: list[Event] = [TextDelta("a"), ToolCallDelta(0, CALL, tokens=3), TextDelta("bc")]
    past, through = filled(0, max_events=2, keeps=keeps), filled(0, max_events=2, keeps=keeps)
    past.append_read(said, [weigh(event) for event in said])
    for event in said:
        through.append(event)
    through.take(9)
    for buffer in (past, through):
        assert (buffer.position, buffer.last_id, buffer.unread_bytes) == (3, 3, 0)
        assert buffer.size_bytes == sum(map(weigh, said[1:])) * keeps
        if keeps:
            buffer.seek(1)
            assert buffer.unread_tokens == 4
            assert buffer.take(9) == said[1:]
        with pytest.raises(StreamGap):
            buffer.seek(0)


def test_the_bytes_of_what_was_read_are_bounded() -> None:
    one = weigh(TextDelta("1"))
    buffer = filled(9, max_bytes=3 * one)
    buffer.take(9)
    assert buffer.size_bytes == 3 * one
    buffer.seek(6)
    with pytest.raises(StreamGap):
        buffer.seek(5)


def test_a_buffer_that_does_not_keep_forgets_what_was_read() -> None:
    buffer = filled(3, keeps=False)
    buffer.take(2)
    with pytest.raises(StreamGap):
        buffer.seek(1)
    buffer.seek(2)
    assert texts(buffer.take(9)) == ["3"]
    assert buffer.size_bytes == 0


def test_a_number_to_come_is_refused_and_changes_nothing() -> None:
    buffer = filled(3)
    buffer.take(1)
    with pytest.raises(InvalidRequest):
        buffer.seek(4)
    assert texts(buffer.take(9)) == ["2", "3"]


def test_there_is_room_up_to_either_bound() -> None:
    assert filled(3).has_room(4)
    assert not filled(4).has_room(4)
    assert not filled(3, max_bytes=2 * weigh(TextDelta("1"))).has_room(4)


def test_what_takes_memory_counts() -> None:
    assert weigh(TextDelta("x" * 10_000)) > 10_000
    assert weigh(ToolCallDelta(0, ToolCall("c", "n", "x" * 10_000))) > 10_000
    one = TokenLogprob("a", b"a", -1.0)
    many = TextDelta("a", logprobs=(TokenLogprob("a", b"a", -1.0, top=(one,) * 20),))
    assert weigh(many) > 21 * EVENT_BYTES
