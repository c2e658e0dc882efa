"""StreamService: one owner, one terminal record, bounded buffers, drain."""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from msgspec.structs import replace

from gateway.core.errors import (
    EngineFailed,
    IncompleteStream,
    Internal,
    KeyRevoked,
    ModelNotFound,
    Overloaded,
    ShuttingDown,
    StreamCancelled,
    StreamGap,
)
from gateway.core.events import Finished, Started, TextDelta, Usage
from gateway.core.messages import GenerateRequest, Message
from gateway.core.sessions import Session
from gateway.core.states import StreamEnd
from gateway.services.catalog import Catalog
from gateway.services.images import ImagePolicy
from gateway.services.live import LiveStream
from gateway.services.recorder import SessionRecorder
from gateway.services.router import ModelRouterService
from gateway.services.stream_tokens import StreamTokens
from gateway.services.streams import StreamService, choose_limits
from gateway.settings import Settings
from gateway.testing import MemoryJournal, MemorySessionStore
from tests.hand_clock import HandClock
from tests.scripted_provider import ECHO, ScriptedProvider, Step, answer
from tests.told import collect

REQUEST = GenerateRequest(id="req-1", model="scripted/echo", messages=(Message.user("hi"),))


class House:
    def __init__(
        self, provider: ScriptedProvider, tasks: anyio.abc.TaskGroup, **limits: float
    ) -> None:
        self.provider = provider
        self.store = MemorySessionStore()
        self.recorder = SessionRecorder(self.store, MemoryJournal(), node="n", boot="b")
        named = {provider.name: provider}
        router = ModelRouterService(
            named,
            Catalog(named, timeout_s=1, ttl_s=60),
            aliases={},
            images=ImagePolicy(2**20, 10**6),
        )
        self.clock = HandClock()
        chosen: dict[str, Any] = {"max_streams": 10, "buffer_events": 4, **limits}
        self.streams = StreamService(
            router,
            self.recorder,
            tasks,
            node="n",
            limits=replace(choose_limits(Settings()), **chosen),
            tokens=StreamTokens(b"secret", lifetime_s=60, clock=self.clock),
            clock=self.clock,
            sleep=self.clock.sleep,
        )
        tasks.start_soon(self.recorder.run)

    async def session(self) -> Session:
        with anyio.fail_after(5):
            while self.streams.live_count:
                await anyio.lowlevel.checkpoint()
        assert await self.recorder.flush(5)
        [session] = await self.store.recent(10)
        return session


OpenHouse = Callable[..., AbstractAsyncContextManager[House]]


@pytest.fixture
def open_house() -> OpenHouse:
    @asynccontextmanager
    async def open_(script: Iterable[Step], **limits: float) -> AsyncIterator[House]:
        async with anyio.create_task_group() as tasks:
            with anyio.fail_after(10):
                yield House(ScriptedProvider(script), tasks, **limits)
            tasks.cancel_scope.cancel()

    return open_


async def test_a_finished_stream_has_one_record_with_everything(open_house: OpenHouse) -> None:
    async with open_house(answer("a", "b")) as house:
        generation = await collect(house.streams.open(REQUEST, face="openai"))
        assert generation.text == "ab"
        session = await house.session()
    assert session.opened.request_id == "req-1"
    assert session.opened.face == "openai"
    closed = session.closed
    assert closed is not None
    assert (closed.provider, closed.model, closed.end) == ("scripted", "echo", StreamEnd.STOP)
    assert closed.usage == Usage(3, 2)
    assert closed.timings.ttft_ms is not None
    assert closed.timings.total_ms >= closed.timings.ttft_ms
    assert closed.error_code is None


async def test_an_answer_in_one_piece_has_one_record_with_everything(open_house: OpenHouse) -> None:
    async with open_house(answer("a", "b")) as house:
        stream, generation = await house.streams.generate(REQUEST, face="openai")
        assert (stream.is_ended, generation.text, generation.usage) == (True, "ab", Usage(3, 2))
        session = await house.session()
    assert session.opened.id == stream.id
    assert session.closed is not None and session.closed.end is StreamEnd.STOP
    assert session.closed.usage == Usage(3, 2)
    assert session.closed.timings.ttft_ms is not None


async def test_an_asker_who_leaves_stops_the_model_and_was_handed_nothing(
    open_house: OpenHouse,
) -> None:
    async with open_house([Started(ECHO, 7), TextDelta("a"), anyio.Event()]) as house:
        async with anyio.create_task_group() as asker:
            asker.start_soon(house.streams.generate, REQUEST)
            await anyio.wait_all_tasks_blocked()
            assert house.streams.used().popitem()[1] == Usage(7, 1)
            asker.cancel_scope.cancel()
        await house.provider.closed.wait()
        session = await house.session()
    assert session.closed is not None and session.closed.end is StreamEnd.CANCELLED
    assert session.closed.usage == Usage(7, 0)


async def test_a_failed_answer_in_one_piece_raises_and_counts_what_was_said(
    open_house: OpenHouse,
) -> None:
    async with open_house([Started(ECHO, 7), TextDelta("a"), EngineFailed("boom")]) as house:
        with pytest.raises(EngineFailed, match="boom"):
            await house.streams.generate(REQUEST)
        session = await house.session()
    assert session.closed is not None and session.closed.error_code == "engine_failed"
    assert session.closed.usage == Usage(7, 1)


@pytest.mark.parametrize(
    ("stop", "shown"),
    [
        (lambda streams, stream: streams.stop(stream.id, caller=stream.caller), StreamCancelled),
        (lambda streams, stream: stream.abort(KeyRevoked("gone")), KeyRevoked),
        (lambda streams, stream: stream.attach(), StreamGap),
    ],
)
async def test_an_answer_in_one_piece_can_be_stopped_and_not_be_read(
    open_house: OpenHouse,
    stop: Callable[[StreamService, LiveStream], object],
    shown: type[Exception],
) -> None:
    gate = anyio.Event()
    raised: list[Exception] = []

    async def ask(house: House) -> None:
        try:
            await house.streams.generate(REQUEST)
        except Exception as error:
            raised.append(error)

    async with open_house([Started(ECHO), TextDelta("a"), gate, *answer()[1:]]) as house:
        async with anyio.create_task_group() as asker:
            asker.start_soon(ask, house)
            await anyio.wait_all_tasks_blocked()
            [stream] = house.streams.of_caller("")
            if shown is StreamGap:
                with pytest.raises(StreamGap):
                    stop(house.streams, stream)
                gate.set()
            else:
                stop(house.streams, stream)
        assert [type(error) for error in raised] == ([] if shown is StreamGap else [shown])


async def test_cancelling_closes_the_provider_and_counts_what_was_handed_over(
    open_house: OpenHouse,
) -> None:
    gate = anyio.Event()
    script = [
        Started(ECHO, prompt_tokens=7),
        TextDelta("a"),
        TextDelta("b", 2),
        gate,
        TextDelta("c", 4),
        TextDelta("d", 8),
        anyio.Event(),
    ]
    async with open_house(script) as house:
        stream = house.streams.open(REQUEST)
        seen: list[object] = []
        while len(seen) < 3:
            seen += await stream.read()
        stream.confirm()
        gate.set()
        await stream.read(1)  # taken, and lost on the way
        await anyio.wait_all_tasks_blocked()
        stream.leave()
        await house.provider.closed.wait()
        session = await house.session()
    assert session.closed is not None
    assert session.closed.end is StreamEnd.CANCELLED
    assert session.closed.usage == Usage(7, 3)


async def test_leaving_the_stream_s_context_cancels_it(open_house: OpenHouse) -> None:
    async with open_house([Started(ECHO), anyio.Event()]) as house:
        async with house.streams.open(REQUEST) as stream:
            await stream.read()
        session = await house.session()
    assert session.closed is not None and session.closed.end is StreamEnd.CANCELLED


async def test_a_stream_cancelled_before_it_began_has_its_record(open_house: OpenHouse) -> None:
    async with open_house(answer("a")) as house:
        house.streams.open(REQUEST).leave()
        session = await house.session()
        assert house.provider.requests == []
    assert session.closed is not None and session.closed.end is StreamEnd.CANCELLED


@pytest.mark.parametrize(
    ("raised", "shown", "code"),
    [
        (EngineFailed("boom"), EngineFailed, "engine_failed"),
        (ValueError("secret"), Internal, "internal"),
    ],
)
async def test_a_failure_is_raised_after_what_was_said_and_recorded(
    open_house: OpenHouse, raised: Exception, shown: type[Exception], code: str
) -> None:
    async with open_house([Started(ECHO), TextDelta("a"), raised]) as house:
        stream = house.streams.open(REQUEST)
        text = ""
        with pytest.raises(shown) as caught:
            async for event in stream:
                text += event.text if isinstance(event, TextDelta) else ""
        assert text == "a"
        assert "secret" not in str(caught.value)
        session = await house.session()
    assert session.closed is not None
    assert (session.closed.end, session.closed.error_code) == (StreamEnd.ERROR, code)
    assert session.closed.model == "echo"


async def test_a_provider_that_just_stops_is_incomplete(open_house: OpenHouse) -> None:
    async with open_house([Started(ECHO), TextDelta("a")]) as house:
        with pytest.raises(IncompleteStream):
            await collect(house.streams.open(REQUEST))


async def test_nothing_follows_the_end(open_house: OpenHouse) -> None:
    script = [Started(ECHO), Finished("stop", Usage()), TextDelta("late")]
    async with open_house(script) as house:
        assert (await collect(house.streams.open(REQUEST))).text == ""


async def test_an_unknown_model_is_recorded_as_an_error_of_nobody(open_house: OpenHouse) -> None:
    request = GenerateRequest(id="r", model="nobody-has:this!", messages=REQUEST.messages)
    async with open_house([]) as house:
        with pytest.raises(ModelNotFound):
            await collect(house.streams.open(request))
        session = await house.session()
    assert session.closed is not None
    assert (session.closed.provider, session.closed.error_code) == (None, "model_not_found")


async def test_the_buffer_of_a_slow_reader_is_bounded(open_house: OpenHouse) -> None:
    script = [Started(ECHO), *[TextDelta("x")] * 100, Finished("stop", Usage())]
    async with open_house(script, buffer_events=4) as house:
        stream = house.streams.open(REQUEST)
        await anyio.wait_all_tasks_blocked()
        assert house.provider.said <= 6
        assert len(await stream.read()) == 4
        assert len(await collect_rest(stream)) == 98


async def collect_rest(stream: object) -> list[object]:
    return [event async for event in stream]  # type: ignore[attr-defined]


async def test_the_record_is_there_before_the_reader_knows_that_it_started(
    open_house: OpenHouse,
) -> None:
    async with (
        open_house([Started(ECHO), anyio.Event()]) as house,
        house.streams.open(REQUEST) as stream,
    ):
        seen: list[object] = []
        while not any(isinstance(event, Started) for event in seen):
            seen += await stream.read()
        [session] = await house.store.recent(1)
        assert session.closed is None
        assert isinstance(seen[0], Started)


async def test_too_many_streams_are_refused_and_a_free_place_is_given_again(
    open_house: OpenHouse,
) -> None:
    async with open_house([Started(ECHO), anyio.Event()], max_streams=1) as house:
        first = house.streams.open(REQUEST)
        with pytest.raises(Overloaded):
            house.streams.open(REQUEST)
        first.leave()
        await house.session()
        house.streams.open(REQUEST).leave()


async def test_draining_lets_streams_finish_and_refuses_new_ones(open_house: OpenHouse) -> None:
    gate = anyio.Event()
    async with open_house([Started(ECHO), gate, Finished("stop", Usage())]) as house:
        stream = house.streams.open(REQUEST)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(house.streams.drain, 5)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(ShuttingDown):
                house.streams.open(REQUEST)
            gate.set()
        assert isinstance((await collect_rest(stream))[-1], Finished)


async def test_draining_ends_what_does_not_finish_with_a_terminal_error(
    open_house: OpenHouse,
) -> None:
    async with open_house([Started(ECHO), TextDelta("a"), anyio.Event()]) as house:
        stream = house.streams.open(REQUEST)
        await anyio.wait_all_tasks_blocked()
        await house.streams.drain(0)
        assert any(isinstance(event, TextDelta) for event in await stream.read())
        with pytest.raises(ShuttingDown):
            await stream.read()
        session = await house.session()
    assert session.closed is not None
    assert (session.closed.end, session.closed.error_code) == (StreamEnd.ERROR, "shutting_down")


async def test_aborting_an_ended_stream_changes_nothing(open_house: OpenHouse) -> None:
    async with open_house(answer("a")) as house:
        stream = house.streams.open(REQUEST)
        await house.session()
        stream.stream.abort(ShuttingDown("late"))
        stream.stream.cancel()
        assert (await collect(stream)).text == "a"


async def test_a_second_drain_without_grace_ends_the_first(open_house: OpenHouse) -> None:
    async with open_house([Started(ECHO), anyio.Event()]) as house:
        stream = house.streams.open(REQUEST)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(house.streams.drain, 3600)
            await anyio.wait_all_tasks_blocked()
            await house.streams.drain(0)
        with pytest.raises(ShuttingDown):
            await collect(stream)
