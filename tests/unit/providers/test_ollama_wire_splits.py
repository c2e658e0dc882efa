"""Bytes arrive in any pieces: the events must not depend on where the cuts are."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import GatewayError
from gateway.core.events import Event, Finished, Started, TextDelta
from gateway.core.names import ModelRef
from gateway.providers.ollama_stream_wire import AnswerReader

REF = ModelRef("ollama", "qwen3:8b")

# As Ollama 0.33 sends it: thinking, text, a call, blank and Windows lines, the end.
RECORDED = (
    b'{"model":"qwen3:8b","created_at":"2026-11-20T10:11:12.1Z","message":{"role":"assistant",'
    b'"content":"","thinking":"Hm \xf0\x9f\xa4\x94"},"done":false}\n'
    b'{"model":"qwen3:8b","message":{"role":"assistant","content":"Gr\xc3\xbc\xc3\x9fe\\n"}}\r\n'
    b"\n\r\n"
    b'{"model":"qwen3:8b","message":{"role":"assistant","content":""},"done":false}\n'
    b'{"model":"qwen3:8b","message":{"role":"assistant","content":"","tool_calls":[{"function":'
    b'{"index":0,"name":"weather","arguments":{"z":"\xe4\xba\xac","a":[1,{"b":null}]}}}]}}\n'
    b'{"model":"qwen3:8b","message":{"role":"assistant","content":"!"},"done":true,'
    b'"done_reason":"stop","total_duration":174560334,"prompt_eval_count":26,"eval_count":259}\n'
)


def play(
    pieces: list[bytes], *, joins: bool = False
) -> tuple[list[Event], Finished | None, str | None]:
    """Read `pieces`, then the end; return the events, the end and the error's code."""
    reader = AnswerReader("r1", REF, joins=joins)
    events: list[Event] = []
    try:
        for piece in pieces:
            for event in reader.feed(piece):
                events.append(event)
            if reader.finished is not None:
                return events, reader.finished, None
        for event in reader.end():
            events.append(event)
    except GatewayError as error:
        return events, reader.finished, error.code
    return events, reader.finished, None


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


@given(st.lists(st.integers(min_value=0, max_value=len(RECORDED)), max_size=40))
def test_any_split_of_a_stream_gives_the_same_events(places: list[int]) -> None:
    """T10"""
    whole = play([RECORDED])
    assert whole[1] is not None
    assert len(whole[0]) == 5
    assert play(cut(RECORDED, places)) == whole


SPOKEN = b"".join(
    b'{"message":{"role":"assistant","content":"%b"},"done":false}\n' % text
    for text in (b"How", b" are", b" \\u4f60", b"?")
)
ERROR_LINE = b'{"error":"out of memory"}\n'
DONE_LINE = b'{"message":{"content":""},"done":true,"prompt_eval_count":3,"eval_count":5}\n'


@pytest.mark.parametrize("end", [DONE_LINE, ERROR_LINE, b"", b"rubbish\n"])
@given(places=st.lists(st.integers(min_value=0, max_value=len(SPOKEN + DONE_LINE)), max_size=9))
def test_texts_that_come_together_may_be_one_and_say_the_same(
    end: bytes, places: list[int]
) -> None:
    apart, finished, error = play([SPOKEN + end])
    pieces = cut(SPOKEN + end, places)
    joined, *told = play(pieces, joins=True)
    assert told == [finished, error]
    assert joined[0] == apart[0] == Started(REF)
    for events in (apart, joined):
        deltas = [event for event in events if isinstance(event, TextDelta)]
        assert "".join(delta.text for delta in deltas) == "How are \u4f60?"
        assert sum(delta.tokens for delta in deltas) == 4
        assert len(deltas) == len(events) - 1
    if len(pieces) == 1:
        assert len(joined) == 2


def test_a_stream_byte_by_byte_gives_the_same_events() -> None:
    """T10"""
    assert play([RECORDED[i : i + 1] for i in range(len(RECORDED))]) == play([RECORDED])


def test_a_stream_cut_at_any_byte_has_one_end() -> None:
    """T6"""
    whole, finished, _ = play([RECORDED])
    for place in range(len(RECORDED)):
        events, end, error = play([RECORDED[:place]])
        assert (end is None) != (error is None), place
        assert events == whole[: len(events)], place
        assert (end == finished) == (place >= len(RECORDED) - 1), place


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=30),
            st.sampled_from(RECORDED.splitlines(keepends=True)),
            st.sampled_from([b'{"error":"x"}\n', b'{"error":{"a":1}}\n', b"{}\n", b"\n", b"[]\n"]),
        ),
        max_size=12,
    ),
    st.lists(st.integers(min_value=0), max_size=10),
)
def test_rubbish_gives_one_end_too_and_no_other_exception(
    parts: list[bytes], places: list[int]
) -> None:
    """F4"""
    data = b"".join(parts)
    events, end, error = play(cut(data, places))
    assert (end is None) != (error is None)
    assert (events, end, error) == play([data])
