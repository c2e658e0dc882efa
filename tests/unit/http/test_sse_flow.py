"""A stream's flow by itself: no task, no ASGI, and one word when it is over."""

import time
from collections.abc import Sequence

import anyio.lowlevel
import pytest

from gateway.core.errors import Internal
from gateway.core.events import Event, Finished, Started, TextDelta, Usage
from gateway.core.names import ModelRef
from gateway.core.sessions import SessionOpened
from gateway.core.turns import Turns
from gateway.http import sse_flow
from gateway.http.disconnect import Connection
from gateway.http.native_events import NativeEvents
from gateway.http.sse_events import PING
from gateway.http.sse_flow import SseFlow
from gateway.services.live import LiveStream
from gateway.services.streams import choose_limits
from gateway.settings import Settings

END = Finished("stop", Usage(1, 1))


class House:
    """A stream, its connection and what was written and told."""

    def __init__(self, encoder: type[NativeEvents] = NativeEvents, **settings: float) -> None:
        self.settings = Settings(**settings)  # type: ignore[arg-type]
        self.live = LiveStream(
            SessionOpened("s", "r", "n", "m", 0.0),
            caller="",
            limits=choose_limits(self.settings),
            is_resumable=True,
            left=lambda _: None,
            clock=time.monotonic,
        )
        self.connection = Connection(lambda: None, Turns())
        self.written: list[bytes] = []
        self.pinged = anyio.Event()
        self.is_ended = False
        self.told: list[Exception | None] = []
        self.flow = SseFlow(
            self.live.attach(),
            encoder(self.live),
            self,
            self.connection,
            self.settings,
            over=self.told.append,
            lose_patience=lambda: None,
        )

    def start(self, stream_id: str) -> None:
        self.written.append(b"HEAD\n\n")

    def write(self, frames: bytes) -> None:
        assert not self.is_ended
        self.written.append(frames)
        if frames == PING:
            self.pinged.set()

    def end(self, frames: bytes) -> None:
        assert not self.is_ended
        self.is_ended = True
        self.written.append(frames)


async def turns(count: int) -> None:
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


async def test_it_is_over_once_all_is_written() -> None:
    house = House()
    house.live.put((Started(ModelRef("p", "m")), TextDelta("hi"), END))
    house.live.end(None)
    assert house.told == []
    house.flow.begin(awaits_first=True)
    assert house.told == [None]
    assert house.is_ended
    assert [frame in b"".join(house.written) for frame in (b"HEAD", b'"hi"', b"finished")]


async def test_what_fails_before_anything_is_written_is_for_whoever_asked() -> None:
    house = House()
    house.flow.begin(awaits_first=True)
    house.live.end(Internal("no"))
    assert [type(error) for error in house.told] == [Internal]
    assert house.written == []


async def test_what_fails_later_is_a_frame() -> None:
    house = House()
    house.flow.begin(awaits_first=False)
    house.live.end(Internal("no"))
    await turns(2)
    assert house.told == [None]
    assert b"event: failed" in house.written[-1]


async def test_a_defect_is_told_and_the_reader_leaves() -> None:
    class Broken(NativeEvents):
        def encode(self, events: Sequence[Event]) -> bytes:
            raise ZeroDivisionError

    house = House(Broken)
    house.flow.begin(awaits_first=False)
    await turns(2)
    house.live.put((TextDelta("x"),))
    assert [type(error) for error in house.told] == [ZeroDivisionError]
    assert not house.live.has_reader


async def test_a_defect_of_whoever_is_told_the_end_is_not_told_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    house = House()
    told = []

    def fail(error: Exception | None) -> None:
        told.append(error)
        raise ZeroDivisionError

    house.flow = SseFlow(
        house.live.attach(),
        NativeEvents(house.live),
        house,
        house.connection,
        house.settings,
        over=fail,
        lose_patience=lambda: None,
    )
    house.flow.begin(awaits_first=False)
    house.live.end(None)
    await turns(3)
    assert told == [None]
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("first_s", [0.001, 60.0])
async def test_who_began_with_an_event_is_pinged_in_time(
    first_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the wait for the first bytes would be over before the first ping, or long after."""
    monkeypatch.setattr(sse_flow, "FIRST_BYTES_WAIT_S", first_s)
    house = House(ping_interval_s=0.02)
    house.flow.begin(awaits_first=True)
    house.live.put((TextDelta("x"),))
    with anyio.fail_after(10):
        await house.pinged.wait()
    assert b"HEAD" in house.written[0]
    assert b'"x"' in b"".join(house.written[1:-1])
    house.flow.stop()


async def test_who_is_told_nothing_hears_that_all_is_well_and_then_pings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sse_flow, "FIRST_BYTES_WAIT_S", 0.001)
    house = House(ping_interval_s=0.02)
    house.flow.begin(awaits_first=True)
    assert house.written == []
    with anyio.fail_after(10):
        await house.pinged.wait()
    assert house.written == [b"HEAD\n\n", NativeEvents.preamble, PING]
    house.flow.stop()


async def test_who_is_stopped_writes_nothing_and_tells_nobody() -> None:
    house = House(ping_interval_s=0.01)
    house.flow.begin(awaits_first=False)
    written = list(house.written)
    house.flow.stop()
    house.flow.stop()
    later = House(ping_interval_s=0.01)
    later.flow.begin(awaits_first=False)
    with anyio.fail_after(10):
        await later.pinged.wait()
    later.flow.stop()
    house.live.put((TextDelta("x"),))
    house.connection.set_full(True)
    house.connection.set_full(False)
    house.connection.lose()
    house.live.end(None)
    await turns(3)
    assert house.written == written
    assert house.told == []
    assert house.connection.flow_changed is None
