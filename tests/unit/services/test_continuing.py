"""ModelRouterService over answers that break in the middle: who goes on, and when nobody does."""

from functools import partial
from typing import Any

import pytest

from gateway.core.errors import (
    ContextLengthExceeded,
    GatewayError,
    IncompleteStream,
    InvalidRequest,
    ModelUnloaded,
    ProviderTimeout,
    ProviderUnavailable,
)
from gateway.core.events import (
    Event,
    Finished,
    ReasoningDelta,
    Routed,
    Started,
    Switched,
    TextDelta,
    Usage,
    Waiting,
)
from gateway.core.messages import GenerateRequest, Message, Options, ResponseFormat, Said
from gateway.core.models import ModelInfo
from gateway.core.names import ModelRef
from gateway.core.virtual import Candidate, VirtualModel
from gateway.services.catalog import Catalog
from gateway.services.images import ImagePolicy
from gateway.services.router import ModelRouterService
from tests.scripted_provider import Step, TurnProvider
from tests.told import events_of

A, B, C = (ModelRef(name, "echo") for name in "abc")
CUT = IncompleteStream("a", "Cut.")


class House:
    """Providers `a`, `b` and `c`, each with one script for every request that it gets."""

    def __init__(self, *scripts: list[list[Step]], most: int = 3, **rule: Any) -> None:
        self.providers = [
            TurnProvider(turns, name=name) for name, turns in zip("abc", scripts, strict=False)
        ]
        named = {provider.name: provider for provider in self.providers}
        for provider in self.providers:
            provider.listed = [ModelInfo(ModelRef(provider.name, "echo"))]
        candidates = tuple(Candidate(f"{name}/echo") for name in named)
        self.router = ModelRouterService(
            named,
            Catalog(named, timeout_s=1, ttl_s=60),
            aliases={},
            images=ImagePolicy(1, 1),
            rules={"any": VirtualModel("any", candidates, **rule)},
            max_continuations=most,
            draw=lambda: 1.0,
            sleep=self.sleep,
        )

    async def sleep(self, seconds: float) -> None:
        pass

    async def hear(self, **fields: Any) -> list[Event]:
        """Return what is told, without who was asked."""
        fields = {"model": "any", "continue_on_failure": True, **fields}
        request = GenerateRequest(id="r", messages=(Message.user("hi"),), **fields)
        events = [event async for event in events_of(partial(self.router.answer, request))]
        return [event for event in events if not isinstance(event, Routed)]

    @property
    def asked(self) -> list[int]:
        return [len(provider.requests) for provider in self.providers]

    def said_to(self, number: int, turn: int = 0) -> Said | None:
        return self.providers[number].requests[turn].said


def part(ref: ModelRef, *texts: str, then: Step | None = None) -> list[Step]:
    deltas: list[Step] = [TextDelta(text) for text in texts]
    end = then or Finished("stop", Usage(3, len(texts)))
    return [Started(ref, prompt_tokens=3), *deltas, end]


async def test_the_next_goes_on_from_the_text_and_the_reader_sees_one_answer() -> None:
    house = House([part(A, "Hel", "lo", then=CUT)], [part(B, ", ", "you")])
    assert await house.hear() == [
        Started(A, prompt_tokens=3),
        TextDelta("Hel"),
        TextDelta("lo"),
        Switched(A, B, "incomplete_stream", 3),
        TextDelta(", "),
        TextDelta("you"),
        Finished("stop", Usage(6, 4)),
    ]
    assert house.said_to(0) is None
    assert house.said_to(1) == Said(text="Hello", tokens=2, source=A)


@pytest.mark.parametrize("asked", [None, False])
async def test_who_does_not_ask_for_it_gets_the_error(asked: bool | None) -> None:
    house = House([part(A, "x", then=CUT)], [part(B, "y")])
    with pytest.raises(IncompleteStream):
        await house.hear(continue_on_failure=asked)
    assert house.asked == [1, 0]


async def test_a_rule_asks_for_all_who_use_its_name() -> None:
    house = House([part(A, "x", then=CUT)], [part(B, "y")], continue_on_failure=True)
    assert Switched(A, B, "incomplete_stream", 3) in await house.hear(continue_on_failure=None)


@pytest.mark.parametrize(("most", "own"), [(2, None), (9, 2)])
async def test_it_goes_on_so_many_times_and_no_more(most: int, own: int | None) -> None:
    breaking = [[part(ref, "x", then=CUT)] for ref in (A, B, C)]
    house = House(*breaking, most=most, max_continuations=own)
    with pytest.raises(IncompleteStream):
        await house.hear()
    assert house.asked == [1, 1, 1]


async def test_a_plain_name_is_gone_on_with_by_the_same_model() -> None:
    house = House([part(A, "x", then=CUT), part(A, "y")])
    events = await house.hear(model="a/echo")
    assert [event.text for event in events if isinstance(event, TextDelta)] == ["x", "y"]
    assert Switched(A, A, "incomplete_stream", 3) in events


async def test_to_ask_the_same_again_is_a_repetition_and_bounded_as_one() -> None:
    house = House([part(A, "x", then=CUT)], most=1)
    for _ in range(100):
        with pytest.raises(IncompleteStream):
            await house.hear(model="a/echo")
    assert house.asked[0] <= 100 * 1.2 + 10


async def test_the_other_candidates_come_first_and_those_before_after_those_behind() -> None:
    house = House(
        [part(A, "1", then=CUT), part(A, "4")],
        [part(B, "2", then=CUT)],
        [part(C, "3", then=CUT)],
    )
    events = await house.hear()
    assert [e.target for e in events if isinstance(e, Switched)] == [B, C, A]
    assert house.said_to(0, 1) == Said(text="123", tokens=3, source=C)


async def test_who_fails_before_he_goes_on_is_followed_by_the_next() -> None:
    away = ProviderUnavailable("b", "Nobody is there.")
    house = House([part(A, "x", then=CUT)], [[away]], [[Waiting("loading"), *part(C, "y")]])
    events = await house.hear()
    assert events[2:4] == [Waiting("loading"), Switched(A, C, "incomplete_stream", 3)]
    assert house.asked == [1, 3, 1]


async def test_a_model_that_was_unloaded_by_hand_is_not_loaded_again() -> None:
    house = House([part(A, "x", then=ModelUnloaded("By hand."))])
    with pytest.raises(ModelUnloaded):
        await house.hear(model="a/echo")
    assert house.asked == [1]


async def test_what_is_no_text_is_not_gone_on_with_by_another() -> None:
    thinking: list[Step] = [Started(A), ReasoningDelta("Hm"), CUT]
    house = House([thinking], [part(B, "y")])
    with pytest.raises(IncompleteStream):
        await house.hear()
    bound = House([part(A, "{", then=CUT)], [part(B, "}")])
    with pytest.raises(IncompleteStream):
        await bound.hear(response_format=ResponseFormat("json_object"))
    assert (house.asked, bound.asked) == ([1, 0], [1, 0])


async def test_who_takes_no_text_is_passed_over() -> None:
    house = House([part(A, "x", then=CUT)], [part(B, "y")], [part(C, "z")])
    house.providers[1].takes_text = False
    events = await house.hear()
    assert [e.target for e in events if isinstance(e, Switched)] == [C]


async def test_an_answer_of_which_nothing_was_said_begins_anew_with_anybody() -> None:
    house = House([part(A, then=ProviderTimeout("a", "Silent."))], [part(B, "y")])
    house.providers[1].takes_text = False
    events = await house.hear(response_format=ResponseFormat("json_object"))
    assert events[1:3] == [Switched(A, B, "provider_timeout", 3), TextDelta("y")]
    assert house.said_to(1) is None


async def test_tokens_that_were_said_count_for_the_most_and_a_full_answer_just_ends() -> None:
    house = House([part(A, "x", "y", then=CUT)], [part(B, "z")])
    await house.hear(options=Options(max_tokens=5))
    assert house.providers[1].requests[0].max_tokens_left == 3
    full = House([part(A, "x", "y", then=CUT)], [part(B, "z")])
    events = await full.hear(options=Options(max_tokens=2))
    assert events[-1] == Finished("length", Usage(3, 2))
    assert full.asked == [1, 0]


async def test_a_stop_string_over_the_joint_ends_the_answer_and_the_model() -> None:
    house = House([part(A, "one ST", then=CUT)], [part(B, "O", "P two", "three")])
    events = await house.hear(options=Options(stop=("STOP",)))
    assert events[-2:] == [
        Switched(A, B, "incomplete_stream", 3),
        Finished("stop", Usage(6, 3)),
    ]
    assert house.providers[1].closed.is_set()


@pytest.mark.parametrize(
    "error", [InvalidRequest("No."), ContextLengthExceeded("It was cut."), GatewayError("What?")]
)
async def test_what_nobody_else_could_do_better_ends_as_it_is(error: GatewayError) -> None:
    house = House([part(A, "x", then=error)], [part(B, "y")])
    with pytest.raises(type(error)):
        await house.hear()
    assert house.asked == [1, 0]
