"""ModelRouterService over candidates that fail: who is asked next, and when nobody is."""

from collections.abc import Sequence
from functools import partial

import anyio
import anyio.lowlevel
import pytest

from gateway.core.breaker import FAILURES
from gateway.core.errors import (
    GatewayError,
    IncompleteStream,
    InvalidRequest,
    NoRoom,
    ProviderUnavailable,
)
from gateway.core.events import Event, Routed, Started, TextDelta, Waiting
from gateway.core.messages import GenerateRequest, Message
from gateway.core.models import ModelInfo
from gateway.core.names import ModelRef
from gateway.core.virtual import Candidate, VirtualModel
from gateway.services.catalog import Catalog
from gateway.services.health import PROBE_S, PROBE_TIMEOUT_S, HealthBoard
from gateway.services.images import ImagePolicy
from gateway.services.router import ModelRouterService
from gateway.telemetry.meter import Meter
from tests.scripted_provider import ScriptedProvider, Step, answer
from tests.told import events_of

A, B = ModelRef("a", "echo"), ModelRef("b", "echo")
ANY = GenerateRequest(id="r", model="any", messages=(Message.user("hi"),))
DIRECT = GenerateRequest(id="r", model="a/echo", messages=(Message.user("hi"),))


class House:
    """Up to two providers, `a` before `b`, and a clock that waiting turns."""

    def __init__(self, *scripts: list[Step]) -> None:
        self.providers = [
            ScriptedProvider(script, name=name) for name, script in zip("ab", scripts, strict=False)
        ]
        named = {provider.name: provider for provider in self.providers}
        for provider in self.providers:
            provider.listed = [ModelInfo(ModelRef(provider.name, "echo"))]
        self.now = 0.0
        self.meter = Meter()
        candidates = tuple(Candidate(f"{name}/echo") for name in named)
        self.router = ModelRouterService(
            named,
            Catalog(named, timeout_s=1, ttl_s=60),
            aliases={},
            images=ImagePolicy(1, 1),
            rules={"any": VirtualModel("any", candidates)},
            meter=self.meter,
            draw=lambda: 1.0,
            clock=lambda: self.now,
            sleep=self.sleep,
        )

    async def sleep(self, seconds: float) -> None:
        self.now += seconds

    async def hear(self, request: GenerateRequest = ANY) -> list[Event]:
        return [event async for event in events_of(partial(self.router.answer, request))]

    @property
    def asked(self) -> list[int]:
        return [len(provider.requests) for provider in self.providers]


def away() -> ProviderUnavailable:
    return ProviderUnavailable("a", "Nobody is there.")


async def test_who_fails_before_a_word_is_followed_by_the_next() -> None:
    house = House([Waiting("loading"), NoRoom("Full.")], answer("x"))
    events = await house.hear()
    assert events[:3] == [Routed(A), Waiting("loading"), Routed(B, "no_room")]
    assert [event.text for event in events if isinstance(event, TextDelta)] == ["x"]
    assert house.asked == [1, 1]


async def test_one_that_is_away_is_tried_again_with_longer_waits_before_the_next_is_asked() -> None:
    house = House([away()], answer("x"))
    await house.hear()
    assert house.asked == [3, 1]
    assert house.now == pytest.approx(0.05 + 0.2)


async def test_what_was_tried_again_and_what_went_elsewhere_is_counted_by_who_failed() -> None:
    house = House([away()], answer("x"))
    await house.hear()
    assert house.meter.retries == {("a", "provider_unavailable"): 2}
    assert house.meter.fallbacks == {("a", "provider_unavailable"): 1}


async def test_an_error_that_nobody_mends_counts_as_no_further_try() -> None:
    house = House([away()])
    with pytest.raises(ProviderUnavailable):
        await house.hear(DIRECT)
    assert house.meter.retries == {("a", "provider_unavailable"): 2}
    assert not house.meter.fallbacks


async def test_the_state_of_every_provider_s_breaker_is_told_and_its_openings_are_counted() -> None:
    house = House([away()], answer("x"))
    assert house.router.health.breakers() == {"a": "closed", "b": "closed"}
    for _ in range(FAILURES):
        await house.hear()
    assert house.router.health.breakers() == {"a": "open", "b": "closed"}
    house.now += 1.0
    assert house.router.health.breakers()["a"] == "half_open"
    await house.hear()  # the probe fails, and it is one outage still
    assert house.router.health.breakers()["a"] == "open"
    assert house.router.health.openings == {"a": 1}


async def test_a_model_s_breaker_is_told_while_it_is_not_closed() -> None:
    house = House([IncompleteStream("a", "Cut.")], answer("x"))
    for _ in range(FAILURES):
        await house.hear()
    assert house.router.health.breakers() == {"a": "closed", "b": "closed", A: "open"}
    assert house.router.health.openings == {"a": 1}


async def test_after_the_first_token_nothing_is_repeated() -> None:
    cut = IncompleteStream("a", "Cut.")
    house = House([Started(A), TextDelta("x"), cut], answer("y"))
    with pytest.raises(IncompleteStream):
        await house.hear()
    assert house.asked == [1, 0]


async def test_what_is_the_caller_s_fault_is_not_tried_elsewhere() -> None:
    house = House([InvalidRequest("No.")], answer("y"))
    with pytest.raises(InvalidRequest):
        await house.hear()
    assert house.asked == [1, 0]


async def test_the_last_error_is_the_caller_s() -> None:
    house = House([NoRoom("a is full")], [NoRoom("b is full")])
    with pytest.raises(NoRoom, match="b is full") as caught:
        await house.hear()
    assert caught.value.__cause__ is not caught.value


async def test_a_provider_that_keeps_failing_is_left_alone_and_one_probe_brings_it_back() -> None:
    house = House([away()], answer("x"))
    while house.asked[0] < FAILURES:
        await house.hear()
    asked = house.asked[0]
    assert (await house.hear())[0] == Routed(B)
    with pytest.raises(ProviderUnavailable, match=r"Nobody is there\. .*left alone") as caught:
        await house.hear(DIRECT)
    assert caught.value.retry_after_s is not None
    assert house.asked[0] == asked
    house.now += 10
    house.providers[0].script = answer("back")
    assert (await house.hear())[0] == Routed(A)
    assert (await house.hear(DIRECT))[0] == Routed(A)


async def test_an_outage_is_not_amplified_by_retries() -> None:
    house = House([IncompleteStream("a", "Cut.")])
    requests = 300
    for _ in range(requests):
        house.now += 60  # so that the breaker never saves anybody from asking
        with pytest.raises(GatewayError):
            await house.hear()
    assert requests < house.asked[0] <= requests * 1.2 + 10


@pytest.mark.parametrize("fault", [away(), ValueError("a defect of its own")])
async def test_a_provider_that_is_back_is_seen_without_a_request(fault: Exception) -> None:
    house = House([away()])
    while not house.router.health.view().providers:
        with pytest.raises(ProviderUnavailable):
            await house.hear()
    provider = house.providers[0]
    provider.listing_error = fault
    looks = 0

    async def sleep(seconds: float) -> None:
        nonlocal looks
        looks += 1
        house.now += 10  # long after the pause: it would let a request try, but none comes
        if looks == 2:
            provider.listing_error = None

    with anyio.move_on_after(5) as waiting:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(house.router.health.watch, sleep)
            while house.router.health.resting or looks < 3:
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
    assert not waiting.cancelled_caught


class Hanging(ScriptedProvider):
    """One whose listing never comes; `asked` and `left` tell that somebody waited for it."""

    def __init__(self, name: str) -> None:
        super().__init__([away()], name=name)
        self.asked, self.left = anyio.Event(), anyio.Event()

    async def models(self) -> Sequence[ModelInfo]:
        self.asked.set()
        try:
            await anyio.sleep_forever()
        finally:
            self.left.set()
        return []


async def test_one_that_hangs_does_not_keep_another_from_being_seen() -> None:
    hanging, back = Hanging("a"), ScriptedProvider([away()], name="b")
    board = HealthBoard({"a": hanging, "b": back}, clock=lambda: 0.0)
    for ref in (A, B):
        for _ in range(FAILURES):
            with pytest.raises(ProviderUnavailable), board.attempt(ref):
                raise ProviderUnavailable(ref.provider, "Nobody is there.")
    assert board.resting == ["a", "b"]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(board.watch)
        await hanging.asked.wait()
        while "b" in board.resting:
            await anyio.lowlevel.checkpoint()
        assert not hanging.left.is_set()
        tasks.cancel_scope.cancel()
    assert board.resting == ["a"]


def test_a_provider_that_is_back_is_seen_within_a_second() -> None:
    assert PROBE_S + PROBE_TIMEOUT_S < 1
