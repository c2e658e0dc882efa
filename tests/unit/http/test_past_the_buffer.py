"""What goes past the buffer is the same to everybody as what goes through it: the bytes, the
numbers, what counts as used."""

import asyncio
from collections.abc import Awaitable, Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.errors import GatewayError, Internal, StreamGap
from gateway.core.events import Event, Finished, Started, TextDelta, ToolCallDelta, Usage, Waiting
from gateway.core.messages import ToolCall
from gateway.core.names import ModelRef
from gateway.core.sessions import SessionOpened
from gateway.core.turns import TURN_BYTES, Turns
from gateway.http.disconnect import Connection
from gateway.http.native_events import NativeEvents
from gateway.http.sse_flow import SseFlow
from gateway.services.live import LiveStream, StreamLimits
from gateway.settings import Settings

REF = ModelRef("p", "m")
LIMITS = StreamLimits(
    max_streams=1,
    buffer_events=20,
    replay_events=24,
    replay_bytes=6000,
    kept_bytes=0,
    resume_s=0,
    detached_s=0,
    keep_s=0,
)


class Through(SseFlow):
    """The ordinary way: all goes through the buffer."""

    __slots__ = ()

    def is_ready(self, size: int) -> bool:
        return False


class Wire:
    def __init__(self) -> None:
        self.written = b""

    def start(self, stream_id: str) -> None:
        self.written += b"HEAD "

    def write(self, frames: bytes) -> None:
        self.written += frames

    def end(self, frames: bytes) -> None:
        self.written += frames + b" END"


class Reading:
    """One reader's connection, and what was written to it."""

    def __init__(self, live: LiveStream, flow: type[SseFlow], turns: Turns, after: int) -> None:
        self.connection = Connection(lambda: None, turns)
        self.wire = Wire()
        self.over: list[str] = []
        self.reader = live.attach(after)
        self.flow = flow(
            self.reader,
            NativeEvents(live, after),
            self.wire,
            self.connection,
            Settings(),
            over=lambda error: self.over.append(repr(error)),
            lose_patience=lambda: None,
        )
        self.flow.begin(awaits_first=after == 0)


class Side:
    """A stream with whoever reads it, by one of the ways."""

    def __init__(self, flow: type[SseFlow], *, is_resumable: bool) -> None:
        self._flow = flow
        self._turns = Turns()
        self._now = 0.0
        self._waiting: asyncio.Task[None] | None = None
        self.live = LiveStream(
            SessionOpened("s", "r", "n", "m", 0.0),
            caller="",
            limits=LIMITS,
            is_resumable=is_resumable,
            left=lambda _: None,
            clock=lambda: self._now,
        )
        self.readings: list[Reading] = []
        self.read(0)

    def read(self, after: int) -> str:
        """Let another reader take over; return why not."""
        try:
            reading = Reading(self.live, self._flow, self._turns, after)
        except GatewayError as error:
            return repr(error)
        self.readings.append(reading)
        return ""

    def put(self, events: tuple[Event, ...], seconds: float) -> None:
        self._now += seconds
        if self._waiting is None or self._waiting.done():
            wait: Callable[[], Awaitable[None]] | None = self.live.put(events)
            self._waiting = None if wait is None else asyncio.ensure_future(_run(wait))

    def end(self, error: GatewayError | None) -> None:
        if not self.live.is_ended and (self._waiting is None or self._waiting.done()):
            self.live.end(error)

    def crowd(self) -> None:
        """Let others have written all that may be written in this turn."""
        self._turns.admit(TURN_BYTES, lambda: None)

    def leave(self) -> None:
        reading = self.readings[-1]
        reading.flow.stop()
        reading.reader.leave()

    def seen(self) -> dict[str, object]:
        """All that anybody could know."""
        live = self.live
        return {
            "written": [reading.wire.written for reading in self.readings],
            "over": [reading.over for reading in self.readings],
            "numbers": (live.last_id, live.has_unread, live.unread_bytes, live.size_bytes),
            "used": (live.usage, live.tally.usage, live.timings, live.has_reader),
            "gaps": (live.tally.gaps.counts, live.tally.gaps.total_s),
            "waits": self._waiting is not None and not self._waiting.done(),
        }

    async def close(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            await asyncio.wait([self._waiting])
        for reading in self.readings:
            reading.flow.stop()


async def _run(wait: Callable[[], Awaitable[None]]) -> None:
    await wait()


# ASCII alone: other texts weigh more once they were encoded, and both sides have the same ones.
TEXTS = st.builds(TextDelta, st.text("ab\n", max_size=3), st.integers(0, 3))
EVENTS = st.one_of(
    TEXTS,
    TEXTS,
    st.builds(TextDelta, st.sampled_from(["x" * 700, "y" * 5000])),
    st.just(ToolCallDelta(0, ToolCall("c", "n", "{}"))),
    st.just(Waiting("queued", 1)),
    st.just(Started(REF)),
)
TOGETHER = st.one_of(
    st.tuples(TEXTS), st.tuples(EVENTS), st.lists(EVENTS, min_size=1, max_size=18).map(tuple)
)
OTHERS = ("full", "free", "read", "crowd", "lose", "leave", "finish", "end", "fail")
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["put"] * 18 + [*OTHERS]),
        TOGETHER,
        st.sampled_from([0.0, 0.03, 2.0]),
        st.integers(0, 12),
        st.integers(0, 2),
    ),
    min_size=8,
    max_size=30,
)


def act(side: Side, what: str, events: tuple[Event, ...], seconds: float, back: int) -> str:
    """Do one thing; return what it was refused with."""
    live, connection = side.live, side.readings[-1].connection
    match what:
        case "put" if not live.is_ended:
            side.put(events, seconds)
        case "full" | "free" if not connection.is_lost:
            connection.set_full(what == "full")
        case "read":
            return side.read(max(0, live.last_id - back))
        case "crowd":
            side.crowd()
        case "lose":
            connection.lose()
        case "leave":
            side.leave()
        case "finish" if not live.is_ended:
            side.put((Finished("stop", Usage(1, 1)),), 0.0)
            side.end(None)
        case "end":
            side.end(None)
        case "fail":
            side.end(Internal("no"))
    return ""


@settings(max_examples=300)
@given(steps=STEPS, is_resumable=st.booleans())
def test_both_ways_are_the_same_whatever_happens(steps: list, is_resumable: bool) -> None:  # type: ignore[type-arg]
    async def both() -> None:
        past, through = (Side(flow, is_resumable=is_resumable) for flow in (SseFlow, Through))
        for *step, turns in steps:
            assert act(past, *step) == act(through, *step)
            assert past.seen() == through.seen()
            for _ in range(turns):
                await asyncio.sleep(0)
                assert past.seen() == through.seen()
        for side in (past, through):
            side.readings[-1].connection.set_full(False)
        for _ in range(60):
            await asyncio.sleep(0)
        assert past.seen() == through.seen()
        await past.close()
        await through.close()

    asyncio.run(both())


def test_a_token_that_finds_room_is_in_no_buffer() -> None:
    async def talk() -> None:
        side = Side(SseFlow, is_resumable=True)
        side.put((Started(REF),), 0.0)
        await asyncio.sleep(0)
        heard: list[int] = []
        side.readings[-1].wire.write = lambda frames: heard.append(side.live.unread_bytes)  # type: ignore[method-assign]
        side.put((TextDelta("x"),), 0.0)
        assert heard == [0]
        assert side.read(1) == ""
        side.readings[-1].connection.set_full(True)
        await side.close()

    asyncio.run(talk())


def test_what_was_let_go_is_a_gap_by_either_way() -> None:
    async def talk(flow: type[SseFlow]) -> str:
        side = Side(flow, is_resumable=True)
        for _ in range(40):
            side.put((TextDelta("x"),), 0.1)
            await asyncio.sleep(0)
        refused = side.read(1)
        await side.close()
        return refused

    found = {asyncio.run(talk(flow)) for flow in (SseFlow, Through)}
    assert len(found) == 1
    assert StreamGap.__name__ in found.pop()


def test_what_is_small_does_not_overtake_what_waits_for_its_turn() -> None:
    async def talk() -> bytes:
        side = Side(SseFlow, is_resumable=True)
        side.crowd()
        side.put((TextDelta("y" * 5000),), 0.0)
        side.put((TextDelta("after"),), 0.0)
        for _ in range(3):
            await asyncio.sleep(0)
        await side.close()
        return side.readings[-1].wire.written

    written = asyncio.run(talk())
    assert 0 < written.index(b"yyy") < written.index(b"after")
