"""Streams whose readers come, go, come back and take over; and streams without one."""

import anyio
import pytest

from gateway.core.errors import (
    EngineFailed,
    InvalidRequest,
    StreamGap,
    StreamNotFound,
    StreamTakenOver,
)
from gateway.core.events import Event, Finished, Started, TextDelta, Usage
from gateway.core.keys import Caller
from gateway.core.states import StreamEnd
from gateway.services.live import StreamReader
from tests.scripted_provider import ECHO, answer
from tests.unit.services.test_streams import REQUEST, House, OpenHouse, open_house

__all__ = ["open_house"]

NUMBERS = [str(number) for number in range(20)]


async def read_all(reader: StreamReader) -> list[Event]:
    return [event async for event in reader]


async def texts(reader: StreamReader) -> list[str]:
    return [event.text for event in await read_all(reader) if isinstance(event, TextDelta)]


def opened(house: House, caller: str = "me", **how: bool) -> StreamReader:
    return house.streams.open(REQUEST, caller=Caller(caller), is_resumable=True, **how)


async def test_a_stream_that_lost_its_reader_waits_for_the_next_one(open_house: OpenHouse) -> None:
    gate = anyio.Event()
    script = [Started(ECHO), TextDelta("a"), gate, TextDelta("b"), Finished("stop", Usage(1, 2))]
    async with open_house(script, resume_s=10) as house:
        reader = opened(house)
        await anyio.wait_all_tasks_blocked()
        seen = await reader.read()
        reader.leave()
        await house.clock.turn(9)
        assert house.streams.live_count == 1
        gate.set()
        rest = await read_all(house.streams.find(reader.stream.id, caller="me").attach(len(seen)))
        session = await house.session()
    assert [*seen, *rest] == [step for step in script if not isinstance(step, anyio.Event)]
    assert session.closed is not None and session.closed.end is StreamEnd.STOP


async def test_a_stream_whose_reader_does_not_come_back_is_cancelled(open_house: OpenHouse) -> None:
    async with open_house([Started(ECHO), anyio.Event()], resume_s=10) as house:
        opened(house).leave()
        await anyio.wait_all_tasks_blocked()
        await house.clock.turn(10)
        session = await house.session()
    assert session.closed is not None and session.closed.end is StreamEnd.CANCELLED


async def test_the_time_to_come_back_begins_anew_with_each_leaving(open_house: OpenHouse) -> None:
    async with open_house([Started(ECHO), anyio.Event()], resume_s=10) as house:
        reader = opened(house)
        for _ in range(3):
            reader.leave()
            await anyio.wait_all_tasks_blocked()
            await house.clock.turn(9)
            reader = reader.stream.attach()
            await anyio.wait_all_tasks_blocked()
        await house.clock.turn(100)
        assert house.streams.live_count == 1
        reader.leave()
        await anyio.wait_all_tasks_blocked()
        await house.clock.turn(10)
        await house.session()


async def test_without_a_time_to_come_back_leaving_cancels_and_the_end_can_be_read(
    open_house: OpenHouse,
) -> None:
    async with open_house([Started(ECHO), TextDelta("a"), anyio.Event()]) as house:
        reader = opened(house)
        await anyio.wait_all_tasks_blocked()
        reader.leave()
        await house.session()
        again = house.streams.find(reader.stream.id, caller="me").attach(2)
        assert await read_all(again) == [Finished("cancelled", Usage(0, 1))]


async def test_a_newer_reader_takes_over_and_the_older_one_is_told(open_house: OpenHouse) -> None:
    gate = anyio.Event()
    async with open_house([*answer("a")[:-1], gate, *answer("b")[1:]]) as house:
        old = opened(house)
        await anyio.wait_all_tasks_blocked()
        await old.read()
        async with anyio.create_task_group() as tasks:

            async def wait_with_the_old() -> None:
                with pytest.raises(StreamTakenOver):
                    await old.read()
                old.leave()

            tasks.start_soon(wait_with_the_old)
            await anyio.wait_all_tasks_blocked()
            new = old.stream.attach(0)
        gate.set()
        assert await texts(new) == ["a", "b"]


async def test_a_detached_stream_needs_no_reader_and_is_kept_for_one(open_house: OpenHouse) -> None:
    async with open_house(answer(*NUMBERS), detached_s=300, keep_s=5) as house:
        reader = opened(house, is_detached=True)
        reader.leave()
        session = await house.session()
        await house.clock.turn(299)
        stream = house.streams.find(reader.stream.id, caller="me")
        assert await texts(stream.attach()) == NUMBERS
        await house.clock.turn(1)
        with pytest.raises(StreamNotFound):
            house.streams.find(reader.stream.id, caller="me")
    assert session.closed is not None and session.closed.end is StreamEnd.STOP


async def test_a_detached_stream_ends_when_nobody_came_in_time(open_house: OpenHouse) -> None:
    async with open_house([Started(ECHO), anyio.Event()], detached_s=300) as house:
        opened(house, is_detached=True).leave()
        await anyio.wait_all_tasks_blocked()
        await house.clock.turn(300)
        session = await house.session()
    assert session.closed is not None and session.closed.end is StreamEnd.CANCELLED


async def test_a_stream_without_a_reader_pauses_when_its_buffer_is_full(
    open_house: OpenHouse,
) -> None:
    async with open_house(answer(*NUMBERS), replay_events=7) as house:
        reader = opened(house, is_detached=True)
        reader.leave()
        await anyio.wait_all_tasks_blocked()
        assert house.provider.said == 8  # one of them waits for room
        assert await texts(reader.stream.attach()) == NUMBERS


async def test_a_stream_that_nobody_reads_lets_others_run(open_house: OpenHouse) -> None:
    script = [Started(ECHO), *[TextDelta("x")] * 100_000]
    async with open_house(script, replay_events=200_000, replay_bytes=2**30) as house:
        opened(house, is_detached=True).leave()
        turns = 0
        while house.streams.live_count:
            await anyio.lowlevel.checkpoint()
            turns += 1
        assert turns > 5_000


async def test_what_is_no_longer_kept_is_said_to_be_missing(open_house: OpenHouse) -> None:
    async with open_house(answer(*NUMBERS), replay_events=5) as house:
        reader = opened(house)
        await read_all(reader)
        stream = house.streams.find(reader.stream.id, caller="me")
        with pytest.raises(StreamGap):
            stream.attach(3)
        with pytest.raises(InvalidRequest):
            stream.attach(99)
        assert len(await read_all(stream.attach(stream.last_id - 5))) == 5


async def test_an_error_is_an_event_that_is_delivered_once_as_well(open_house: OpenHouse) -> None:
    async with open_house([Started(ECHO), TextDelta("a"), EngineFailed("boom")]) as house:
        reader = opened(house)
        await house.session()
        stream = reader.stream
        assert stream.last_id == 3
        assert not stream.is_delivered(2)
        assert stream.is_delivered(3)
        for _ in range(2):
            with pytest.raises(EngineFailed):
                await read_all(stream.attach(2))


async def test_an_ended_stream_is_kept_for_its_time(open_house: OpenHouse) -> None:
    async with open_house(answer("a"), keep_s=60) as house:
        reader = opened(house)
        await read_all(reader)
        await house.clock.turn(59)
        assert house.streams.find(reader.stream.id, caller="me") is reader.stream
        await house.clock.turn(1)
        with pytest.raises(StreamNotFound):
            house.streams.find(reader.stream.id, caller="me")


async def test_one_that_is_kept_for_longer_does_not_keep_those_behind_it(
    open_house: OpenHouse,
) -> None:
    async with open_house(answer("a"), keep_s=60, detached_s=300) as house:
        detached, other = opened(house, is_detached=True), opened(house)
        for reader in (detached, other):
            await read_all(reader)
        await house.clock.turn(60)
        assert house.streams.find(detached.stream.id, caller="me") is detached.stream
        with pytest.raises(StreamNotFound):
            house.streams.find(other.stream.id, caller="me")


async def test_ended_streams_are_kept_within_their_bytes_the_newest_first(
    open_house: OpenHouse,
) -> None:
    async with open_house(answer("a"), kept_bytes=10_000) as house:
        streams = []
        for _ in range(5):
            reader = opened(house)
            await read_all(reader)
            streams.append(reader.stream.id)
        found = []
        for stream_id in streams:
            try:
                found.append(house.streams.find(stream_id, caller="me").id)
            except StreamNotFound:
                continue
        assert found == streams[-2:]


async def test_a_stream_is_its_caller_s_and_its_token_s(open_house: OpenHouse) -> None:
    async with open_house([Started(ECHO), anyio.Event()]) as house:
        mine, theirs = opened(house, "me").stream, opened(house, "them").stream
        assert house.streams.of_caller("me") == [mine]
        token = house.streams.tokens.issue(mine.id)
        assert house.streams.find(mine.id, caller="them", token=token) is mine
        for stream_id in (theirs.id, "unknown"):
            with pytest.raises(StreamNotFound):
                house.streams.find(stream_id, caller="me", token=token)
            with pytest.raises(StreamNotFound):
                house.streams.stop(stream_id, caller="me")


async def test_stopping_ends_the_stream_under_its_reader_and_may_be_repeated(
    open_house: OpenHouse,
) -> None:
    async with open_house([Started(ECHO), TextDelta("a"), anyio.Event()], resume_s=9) as house:
        reader = opened(house)
        await anyio.wait_all_tasks_blocked()
        assert house.streams.stop(reader.stream.id, caller="me")
        assert (await read_all(reader))[-1] == Finished("cancelled", Usage(0, 1))
        assert not house.streams.stop(reader.stream.id, caller="me")
        session = await house.session()
    assert session.closed is not None
    assert (session.closed.end, session.closed.error_code) == (StreamEnd.CANCELLED, None)


async def test_a_stream_that_cannot_be_resumed_keeps_nothing(open_house: OpenHouse) -> None:
    async with open_house(answer("a"), resume_s=9) as house:
        reader = house.streams.open(REQUEST, caller=Caller("me"))
        await read_all(reader)
        with pytest.raises(StreamNotFound):
            house.streams.find(reader.stream.id, caller="me")
    async with open_house([Started(ECHO), anyio.Event()], resume_s=9) as house:
        house.streams.open(REQUEST, caller=Caller("me")).leave()
        await house.session()


async def test_what_nobody_had_is_kept_to_be_read_and_not_counted(open_house: OpenHouse) -> None:
    script = [Started(ECHO, prompt_tokens=7), *[TextDelta("x", 2)] * 3, anyio.Event()]
    async with open_house(script, resume_s=10, buffer_events=9) as house:
        reader = opened(house)
        await anyio.wait_all_tasks_blocked()
        await reader.read(2)
        reader.confirm()
        await reader.read(1)  # the second delta: lost on the way
        reader.leave()
        await anyio.wait_all_tasks_blocked()
        await house.clock.turn(10)
        session = await house.session()
        rest = await read_all(reader.stream.attach(2))
    assert session.closed is not None and session.closed.usage == Usage(7, 2)
    assert rest == [*[TextDelta("x", 2)] * 2, Finished("cancelled", Usage(7, 6))]


async def test_who_comes_back_proves_what_he_had_and_reads_nothing_twice_for_the_count(
    open_house: OpenHouse,
) -> None:
    script = [Started(ECHO, prompt_tokens=7), *[TextDelta("x", 2)] * 3, anyio.Event()]
    async with open_house(script, resume_s=10, buffer_events=9) as house:
        reader = opened(house)
        await anyio.wait_all_tasks_blocked()
        await reader.read()
        reader.leave()  # nothing was confirmed, but the client had all but one
        again = reader.stream.attach(3)
        again.leave()
        from_the_start = reader.stream.attach(0)
        await from_the_start.read(2)
        from_the_start.confirm()
        from_the_start.leave()
        await anyio.wait_all_tasks_blocked()
        await house.clock.turn(10)
        session = await house.session()
    assert session.closed is not None and session.closed.usage == Usage(7, 4)


async def test_a_stream_that_is_stopped_under_its_reader_counts_what_he_is_about_to_read(
    open_house: OpenHouse,
) -> None:
    script = [Started(ECHO, prompt_tokens=7), TextDelta("x", 2), anyio.Event()]
    async with open_house(script) as house:
        reader = opened(house)
        await anyio.wait_all_tasks_blocked()
        house.streams.stop(reader.stream.id, caller="me")
        session = await house.session()
        assert (await read_all(reader))[-1] == Finished("cancelled", Usage(7, 2))
    assert session.closed is not None and session.closed.usage == Usage(7, 2)
