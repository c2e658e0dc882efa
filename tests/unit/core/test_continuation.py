"""How often an answer goes on, who may go on with it, and what all of it comes to."""

from collections.abc import Sequence

import pytest

from gateway.core.continuation import Relay, can_continue, count_continuations, may_recover
from gateway.core.errors import (
    EngineFailed,
    GatewayError,
    IncompleteStream,
    ModelUnloaded,
    NoRoom,
    ProviderRejected,
)
from gateway.core.events import (
    Event,
    Finished,
    ReasoningDelta,
    Started,
    Switched,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from gateway.core.messages import (
    GenerateRequest,
    Message,
    Options,
    ResponseFormat,
    Said,
    TextPart,
    Tool,
    ToolCall,
)
from gateway.core.names import ModelRef
from gateway.core.virtual import Candidate, VirtualModel

A, B = ModelRef("a", "m"), ModelRef("b", "m")
CALL = ToolCallDelta(0, ToolCall("1", "time", "{}"))


def ask(**fields: object) -> GenerateRequest:
    return GenerateRequest(id="r", model="any", messages=(Message.user("hi"),), **fields)  # type: ignore[arg-type]


def rule(**fields: object) -> VirtualModel:
    return VirtualModel("any", (Candidate("a/m"),), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("asked", "by_rule", "most", "expected"),
    [
        (None, None, 3, 0),
        (True, None, 3, 3),
        (True, rule(), 3, 3),
        (None, rule(), 3, 0),
        (None, rule(continue_on_failure=True), 3, 3),
        (None, rule(continue_on_failure=True, max_continuations=1), 3, 1),
        (None, rule(continue_on_failure=True, max_continuations=9), 3, 3),
        (True, rule(max_continuations=1), 3, 1),
        (False, rule(continue_on_failure=True), 3, 0),
        (True, None, 0, 0),
    ],
)
def test_the_caller_decides_first_then_the_rule_and_the_operator_bounds_both(
    asked: bool | None, by_rule: VirtualModel | None, most: int, expected: int
) -> None:
    assert count_continuations(ask(continue_on_failure=asked), by_rule, most) == expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (IncompleteStream("a", "Cut."), True),
        (EngineFailed("Dead."), True),
        (ModelUnloaded("By hand."), False),
        (NoRoom("Full."), False),
        (ProviderRejected("a", "No."), False),
    ],
)
def test_who_was_unloaded_by_hand_or_said_no_is_not_asked_again(
    error: GatewayError, expected: bool
) -> None:
    assert may_recover(error) is expected


TEXT = Said(text="Hello", tokens=2, source=A)
THOUGHT = Said(reasoning="Hm", tokens=1, source=A)


@pytest.mark.parametrize(
    ("said", "fields", "expected"),
    [
        (Said(), {}, True),
        (TEXT, {}, True),
        (THOUGHT, {}, False),
        (Said(text="Hello", reasoning="Hm", tokens=3), {}, True),
        (Said(text="Hello", calls=1, tokens=3), {}, False),
        (TEXT, {"response_format": ResponseFormat("json_object")}, False),
        (TEXT, {"response_format": ResponseFormat("text")}, True),
        (TEXT, {"tools": (Tool("time"),), "tool_choice": "auto"}, True),
        (TEXT, {"tools": (Tool("time"),), "tool_choice": "required"}, False),
    ],
)
def test_another_model_goes_on_from_text_alone(
    said: Said, fields: dict[str, object], expected: bool
) -> None:
    assert can_continue(ask(**fields), said, B, takes_text=True) is expected
    # By its own tokens the one that said it goes on from anything.
    own = Said(said.text, said.reasoning, said.calls, 2, A, (1, 2))
    assert can_continue(ask(**fields), own, A, takes_text=False)


def test_a_provider_that_takes_no_text_can_only_begin_anew() -> None:
    assert not can_continue(ask(), TEXT, B, takes_text=False)
    assert can_continue(ask(), Said(), B, takes_text=False)


def tell(relay: Relay, events: Sequence[Event]) -> list[Event]:
    return [told for event in events for told in relay.tell(event)]


def test_the_parts_make_one_answer_and_one_usage() -> None:
    relay = Relay(ask(options=Options(max_tokens=10)), 2)
    assert relay.begin() == relay.request
    begun: list[Event] = [Started(A, prompt_tokens=5), TextDelta("He", 2), TextDelta("llo")]
    assert tell(relay, begun) == begun
    relay.break_off("incomplete_stream")
    request = relay.begin()
    assert request.said == Said(text="Hello", tokens=3, source=A)
    assert request.max_tokens_left == 7
    told = tell(
        relay,
        [Started(B, prompt_tokens=8), TextDelta("!"), Finished("stop", Usage(8, 4))],
    )
    assert told == [
        Switched(A, B, "incomplete_stream", 8),
        TextDelta("!"),
        Finished("stop", Usage(13, 7)),
    ]
    assert relay.left == 1


def test_tokens_are_handed_on_only_while_one_model_said_them_all() -> None:
    relay = Relay(ask(), 3)
    relay.begin()
    tell(relay, [Started(A), ReasoningDelta("Hm", 1, ids=(7,)), TextDelta("a", 2, ids=(8, 9))])
    relay.break_off("engine_failed")
    again = relay.begin().said
    assert again is not None and again.ids == (7, 8, 9) and again.source == A
    tell(relay, [Started(A), TextDelta("b", 1, ids=(5,))])
    relay.break_off("engine_failed")
    assert relay.said.ids == (7, 8, 9, 5)
    relay.begin()
    tell(relay, [Started(B), TextDelta("c", 1, ids=(5,))])
    assert relay.said.ids == ()
    assert (relay.said.text, relay.said.reasoning) == ("abc", "Hm")


def test_a_part_of_which_nothing_was_said_leaves_nothing_to_go_on_from() -> None:
    relay = Relay(ask(), 1)
    relay.begin()
    tell(relay, [Started(A)])
    relay.break_off("incomplete_stream")
    assert relay.begin().said is None
    tell(relay, [Started(B), TextDelta("b", 1, ids=(5,))])
    assert relay.said.ids == (5,)


def test_an_answer_that_broke_at_its_last_token_is_at_its_end() -> None:
    relay = Relay(ask(options=Options(max_tokens=2)), 1)
    relay.begin()
    tell(relay, [Started(A, prompt_tokens=3), TextDelta("a"), TextDelta("b")])
    relay.break_off("incomplete_stream")
    assert relay.is_full
    assert relay.end() == Finished("length", Usage(3, 2))


def test_a_stop_string_over_the_joint_ends_the_answer() -> None:
    relay = Relay(ask(options=Options(stop=("END",))), 1)
    relay.begin()
    tell(relay, [Started(A), TextDelta("one E")])
    relay.break_off("incomplete_stream")
    relay.begin()
    told = tell(relay, [Started(B, prompt_tokens=4), TextDelta("N"), TextDelta("D two")])
    assert told[1:] == [Finished("stop", Usage(4, 3))]


def test_what_is_held_at_the_joint_comes_before_anything_that_follows() -> None:
    relay = Relay(ask(options=Options(stop=("END",))), 1)
    relay.begin()
    tell(relay, [Started(A), TextDelta("E")])
    relay.break_off("incomplete_stream")
    relay.begin()
    told = tell(relay, [Started(B), TextDelta("N"), CALL, Finished("tool_calls", Usage(0, 2))])
    assert told[1:3] == [TextDelta("N"), CALL]


def test_what_the_caller_had_begun_himself_stays_the_beginning() -> None:
    begun = (Message.user("hi"), Message("assistant", (TextPart("Once "),)))
    assert Said(text="upon").after(begun)[-1].text == "Once upon"
    assert len(Said(text="upon").after(begun)) == 2
    [_, last] = Said(text="Hi", reasoning="Hm").after((Message.user("hi"),))
    assert (last.role, last.text, last.reasoning) == ("assistant", "Hi", "Hm")
