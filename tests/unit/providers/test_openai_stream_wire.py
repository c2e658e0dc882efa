"""Streams of OpenAI-compatible servers: every shape they come in, and every way they are cut."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import (
    ContextLengthExceeded,
    GatewayError,
    IncompleteStream,
    ProviderError,
    ProviderProtocolError,
)
from gateway.core.events import (
    Event,
    Finished,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from gateway.core.messages import ToolCall
from gateway.core.names import ModelRef
from gateway.providers.openai_fault_wire import Faults
from gateway.providers.openai_stream_wire import AnswerReader
from tests.integration.openai_peer import DONE, call_part, delta, event, usage

REF = ModelRef("lab", "m")
Played = tuple[list[Event], Finished | None, GatewayError | None]

# As vLLM sends it, with what the standard allows beside: a BOM, comments, CRLF, data in two lines.
RECORDED = (
    b"\xef\xbb\xbf: hello\r\n\r\n"
    + delta("", role="assistant")
    + delta(reasoning_content="Hm 🤔")
    + delta("Grüße\n").replace(b"\n\n", b"\r\n\r\n")
    + b": keep-alive\n\n"
    + b'event: message\nid: 7\ndata: {"choices":[{"index":0,\ndata: "delta":{"content":"!"}}]}\n\n'
    + delta(tool_calls=[call_part(0, id="a", name="weather", arguments="")])
    + delta(tool_calls=[call_part(0, arguments='{"city": "北')])
    + delta(tool_calls=[call_part(0, arguments='京"}')])
    + delta(tool_calls=[call_part(1, id="b", name="now", arguments="{}")])
    + delta(finish="tool_calls")
    + usage(26, 259)
    + DONE
)


def play(pieces: list[bytes], max_bytes: int = 10_000) -> Played:
    """Read `pieces`, then the end; return the events, the end and the error."""
    reader = AnswerReader(Faults("lab", ["http://lab/v1"]), "r1", REF, max_bytes)
    events: list[Event] = []
    try:
        for piece in pieces:
            for each in reader.feed(piece):
                events.append(each)
            if reader.finished is not None:
                return events, reader.finished, None
        for each in reader.end():
            events.append(each)
    except GatewayError as error:
        return events, reader.finished, error
    return events, reader.finished, None


def read(*parts: bytes) -> tuple[list[Event], Finished]:
    events, finished, error = play([b"".join(parts)])
    assert error is None
    assert finished is not None
    assert isinstance(events[0], Started)
    return events[1:], finished


def fail(*parts: bytes) -> tuple[list[Event], GatewayError]:
    events, finished, error = play([b"".join(parts)])
    assert finished is None
    assert error is not None
    return events, error


def calls_of(*parts: dict[str, Any], finish: str = "tool_calls") -> list[ToolCall]:
    events, _ = read(*(delta(tool_calls=[part]) for part in parts), delta(finish=finish), DONE)
    return [each.call for each in events if isinstance(each, ToolCallDelta)]


def test_a_stream_as_it_is_recorded() -> None:
    events, finished, _ = play([RECORDED])
    assert events == [
        Started(REF),
        ReasoningDelta("Hm 🤔"),
        TextDelta("Grüße\n"),
        TextDelta("!"),
        ToolCallDelta(0, ToolCall("a", "weather", '{"city": "北京"}'), 3),
        ToolCallDelta(1, ToolCall("b", "now", "{}"), 1),
    ]
    assert finished == Finished("tool_calls", Usage(26, 259))


@given(st.lists(st.integers(min_value=0, max_value=len(RECORDED)), max_size=40))
def test_any_split_of_a_stream_gives_the_same_events(places: list[int]) -> None:
    edges = [0, *sorted(places), len(RECORDED)]
    assert play([RECORDED[start:end] for start, end in pairwise(edges)]) == play([RECORDED])


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_a_stream_byte_by_byte_gives_the_same_events(line_end: bytes) -> None:
    data = RECORDED.replace(b"\r\n", b"\n").replace(b"\n", line_end)
    assert play([data[i : i + 1] for i in range(len(data))]) == play([RECORDED])


def test_a_stream_cut_at_any_byte_has_one_end() -> None:
    whole, _, _ = play([RECORDED])
    # The reason to end is in the last chunk but one; without a line end it may have been cut.
    told = RECORDED.index(delta(finish="tool_calls")) + len(delta(finish="tool_calls")) - 2
    for place in range(len(RECORDED)):
        events, finished, error = play([RECORDED[:place]])
        assert events == whole[: len(events)], place
        assert (finished is not None) == (place >= told), place
        assert (error is None) == (place >= told), place
        assert error is None or isinstance(error, IncompleteStream), place


def test_an_end_without_done_is_one_once_the_reason_is_given() -> None:
    """`transformers serve` never says [DONE]."""
    _, finished = read(delta("a"), delta("b", finish="length"))
    assert finished == Finished("length", Usage(0, 2))


def test_done_without_a_reason_is_no_end() -> None:
    """llama-cpp-python says so to who is pushed aside by another request."""
    events, error = fail(delta("a"), DONE)
    assert events[1:] == [TextDelta("a")]
    assert isinstance(error, IncompleteStream)


@pytest.mark.parametrize(
    "said, reason",
    [
        ("stop", "stop"),
        ("eos_token", "stop"),
        ("length", "length"),
        ("content_filter", "error"),
        ("function_call", "tool_calls"),
    ],
)
def test_reasons_to_end(said: str, reason: str) -> None:
    assert read(delta("a", finish=said), DONE)[1].reason == reason


@pytest.mark.parametrize("said", ["abort", "error"])
def test_an_answer_that_is_given_up_is_an_error(said: str) -> None:
    events, error = fail(delta("a"), delta(finish=said), DONE)
    assert events[1:] == [TextDelta("a")]
    assert type(error) is ProviderError


def test_reasoning_has_two_names_and_is_not_said_twice() -> None:
    events, _ = read(
        delta(reasoning="a"),
        delta(reasoning="b", reasoning_content="b"),
        delta("c", finish="stop"),
        DONE,
    )
    assert events == [ReasoningDelta("a"), ReasoningDelta("b"), TextDelta("c")]


def test_tokens_are_counted_where_no_usage_is_told() -> None:
    two = {"content": [{"token": "a", "logprob": -1.0}, {"token": "b", "logprob": -2.0}]}
    _, finished = read(delta("ab", logprobs=two), delta("c"), delta(finish="stop"), DONE)
    assert finished.usage == Usage(0, 3)


def test_usage_may_come_with_every_chunk_and_the_last_counts() -> None:
    chunk = event(choices=[{"index": 0, "delta": {"content": "a"}}], usage={"prompt_tokens": 1})
    _, finished = read(chunk, delta(finish="stop"), usage(2, 10**30), DONE)
    assert finished.usage == Usage(2, 2**31 - 1)


def test_calls_without_an_index_are_told_apart_by_their_ids() -> None:
    found = calls_of(
        call_part(None, id="a", name="f", arguments='{"x":'),
        call_part(None, arguments="1}"),
        call_part(None, id="b", name="f", arguments="{}"),
    )
    assert found == [ToolCall("a", "f", '{"x":1}'), ToolCall("b", "f", "{}")]


def test_calls_that_share_an_index_are_told_apart_by_their_ids() -> None:
    found = calls_of(
        call_part(0, id="a", name="f", arguments='{"x":1}'),
        call_part(0, id="b", name="f", arguments="{}"),
    )
    assert found == [ToolCall("a", "f", '{"x":1}'), ToolCall("b", "f", "{}")]


def test_pieces_of_several_calls_may_be_mixed() -> None:
    found = calls_of(
        call_part(0, id="a", name="f", arguments='{"x":'),
        call_part(1, id="b", name="g", arguments='{"y":'),
        call_part(0, arguments="1}"),
        call_part(1, arguments="2}"),
    )
    assert found == [ToolCall("a", "f", '{"x":1}'), ToolCall("b", "g", '{"y":2}')]


def test_a_call_may_repeat_its_id_and_name_and_lack_its_arguments() -> None:
    found = calls_of(
        call_part(0, id="a", name="f", arguments=None), call_part(0, id="a", name="f", arguments="")
    )
    assert found == [ToolCall("a", "f", "{}")]


def test_arguments_may_be_an_object_and_an_id_may_be_missing() -> None:
    [call] = calls_of(call_part(0, name="f", arguments={"x": [1, {"y": None}]}))
    assert (call.id, call.name) == ("call_r1_0", "f")
    assert json.loads(call.arguments) == {"x": [1, {"y": None}]}


def test_calls_make_a_stop_an_end_for_them() -> None:
    part = delta(tool_calls=[call_part(0, name="f", arguments="{}")])
    assert read(part, delta(finish="stop"), DONE)[1].reason == "tool_calls"


def test_an_empty_reason_to_end_is_none() -> None:
    first = call_part(0, name="f", arguments='{"a":')
    told = event(choices=[{"index": 0, "delta": {"tool_calls": [first]}, "finish_reason": ""}])
    rest = delta(tool_calls=[call_part(0, arguments=" 1}")])
    assert isinstance(fail(told)[1], IncompleteStream)
    assert read(told, rest, delta(finish="tool_calls"), DONE)[1].reason == "tool_calls"


def test_a_call_that_the_limit_cut_is_left_out() -> None:
    assert calls_of(call_part(0, name="f", arguments='{"x": "lon'), finish="length") == []


@pytest.mark.parametrize("arguments", ['{"x":', "[1]", "3", "x"])
def test_arguments_that_are_no_object_are_rubbish(arguments: str) -> None:
    part = call_part(0, name="f", arguments=arguments)
    _, error = fail(delta(tool_calls=[part]), delta(finish="tool_calls"), DONE)
    assert isinstance(error, ProviderProtocolError)


def test_a_call_without_a_name_is_rubbish() -> None:
    part = call_part(0, id="a", arguments="{}")
    _, error = fail(delta(tool_calls=[part]), delta(finish="tool_calls"), DONE)
    assert isinstance(error, ProviderProtocolError)


def test_logprobs_of_a_chat() -> None:
    entry = {
        "token": "ü",
        "logprob": -0.5,
        "bytes": [195, 188],
        "top_logprobs": [{"token": "u", "logprob": -1.5, "bytes": None}],
    }
    events, _ = read(delta("ü", logprobs={"content": [entry]}), delta(finish="stop"), DONE)
    [text] = events
    assert isinstance(text, TextDelta)
    [found] = text.logprobs
    assert (found.token, found.raw, found.logprob) == ("ü", "ü".encode(), -0.5)
    assert [(top.token, top.raw, top.logprob) for top in found.top] == [("u", b"u", -1.5)]


def test_logprobs_of_a_completion() -> None:
    logprobs = {
        "tokens": ["a", "b"],
        "token_logprobs": [None, -1.0],
        "top_logprobs": [None, {"c": -2.0, "b": -1.0}],
    }
    events, _ = read(
        event(choices=[{"index": 0, "text": "ab", "logprobs": logprobs, "finish_reason": "stop"}]),
        DONE,
    )
    [text] = events
    assert isinstance(text, TextDelta)
    assert text.tokens == 2
    assert [found.logprob for found in text.logprobs] == [0.0, -1.0]
    assert [top.token for top in text.logprobs[1].top] == ["b", "c"]


@pytest.mark.parametrize(
    "logprobs",
    [
        None,
        {},
        {"content": None},
        {"tokens": [17], "token_logprobs": [-1.0], "top_logprobs": [[3]]},
    ],
)
def test_logprobs_that_tell_nothing_of_tokens_are_left_out(logprobs: Any) -> None:
    """mlx_lm.server names tokens by their ids."""
    events, _ = read(delta("a", logprobs=logprobs), delta(finish="stop"), DONE)
    assert events == [TextDelta("a")]


@pytest.mark.parametrize(
    "error",
    [
        event(error={"message": "CUDA \x1b error", "type": "InternalServerError", "code": 500}),
        event(object="error", message="CUDA error", code=500),
        event(error="CUDA error", error_type="generation"),
        b"event: error\n" + event(error="CUDA error"),
    ],
)
def test_an_error_inside_the_stream_ends_it_after_what_came_before(error: bytes) -> None:
    events, found = fail(delta("a"), error, delta("b", finish="stop"), DONE)
    assert events == [Started(REF), TextDelta("a")]
    assert type(found) is ProviderError
    assert found.message == "lab failed while it generated: CUDA error"


def test_an_error_inside_the_stream_may_be_the_callers() -> None:
    said = "This model's maximum context length is 4096 tokens. However, you requested 5000"
    _, error = fail(event(error={"message": said, "code": 400}))
    assert isinstance(error, ContextLengthExceeded)


@pytest.mark.parametrize(
    "garbage",
    [
        b"data: rubbish\n\n",
        b"data: []\n\n",
        b'data: {"choices":[{"delta":{"content":"\xff"}}]}\n\n',
        b'data: {"choices":[{"delta":{"content":3}}]}\n\n',
        b'data: {"choices":3}\n\n',
        b"data: " + b'{"a":' * 1500 + b"\n\n",
        b'data: {"error": "a "quoted" text"}\n\n',
    ],
)
def test_garbage_is_a_protocol_error(garbage: bytes) -> None:
    events, error = fail(delta("a"), garbage, delta(finish="stop"), DONE)
    assert events == [Started(REF), TextDelta("a")]
    assert isinstance(error, ProviderProtocolError)
    assert error.message.isprintable()


@given(
    st.lists(
        st.one_of(st.binary(max_size=30), st.sampled_from(RECORDED.splitlines(keepends=True))),
        max_size=20,
    )
)
def test_any_bytes_have_one_end_and_only_our_errors(pieces: list[bytes]) -> None:
    _, finished, error = play(pieces)
    assert (finished is None) != (error is None)


@pytest.mark.parametrize(
    "pieces",
    [
        [b"data: " + b"x" * 5000, b"x" * 5001],
        [b"data: " + b"x" * 900 + b"\n"] * 12,
        [delta(tool_calls=[call_part(0, name="f", arguments="x" * 900)])] * 12,
        [b"data:\n" * 10_002],
        [delta(tool_calls=[call_part(each, name="f", arguments="")]) for each in range(200)],
    ],
    ids=["a line", "an event", "a call", "empty lines", "empty calls"],
)
def test_what_has_no_end_is_bounded(pieces: list[bytes]) -> None:
    _, _, error = play(pieces)
    assert isinstance(error, ProviderProtocolError)
    assert "10000 bytes" in error.message


def test_other_choices_and_empty_events_mean_nothing() -> None:
    other = event(choices=[{"index": 1, "delta": {"content": "b"}}])
    events, _ = read(delta("a"), other, b"data:\n\n", b"data\n\n", delta(finish="stop"), DONE)
    assert events == [TextDelta("a")]
