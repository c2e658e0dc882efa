"""The streams: each has an id, a caller whose it is, and one owner.

The owner, not the reader, runs the model and has the terminal record written, so a reader may
vanish at any point and nothing is left open.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import anyio
from anyio.abc import TaskGroup
from msgspec.structs import replace

from gateway.core.errors import (
    GatewayError,
    Overloaded,
    ShuttingDown,
    StreamNotFound,
)
from gateway.core.events import Collector, Event, Generation, Usage
from gateway.core.keys import ANYBODY, Caller
from gateway.core.messages import GenerateRequest
from gateway.core.names import ModelRef
from gateway.core.ports import SessionMeter, StreamTrace, Tracer
from gateway.core.sessions import SessionClosed, SessionOpened
from gateway.core.states import StreamEnd
from gateway.core.telling import Tell
from gateway.core.trail import Trail
from gateway.services.bell import Bell
from gateway.services.decision_log import DecisionLog
from gateway.services.ended import EndedStreams
from gateway.services.ids import RecordIds
from gateway.services.live import LiveStream, StreamLimits, StreamReader
from gateway.services.owner import Ear, Owner
from gateway.services.recorder import SessionRecorder
from gateway.services.router import ModelRouterService
from gateway.services.slots import CallerSlots
from gateway.services.stream_tokens import StreamTokens
from gateway.settings import Settings
from gateway.telemetry.meter import Meter

logger = logging.getLogger(__name__)


_ENDS = {end.value: end for end in StreamEnd}


def choose_limits(settings: Settings) -> StreamLimits:
    """Return the bounds that the operator set."""
    return StreamLimits(
        max_streams=settings.max_streams,
        buffer_events=settings.stream_buffer_events,
        replay_events=settings.stream_replay_events,
        replay_bytes=settings.stream_replay_bytes,
        kept_bytes=settings.stream_kept_bytes,
        resume_s=settings.stream_resume_s,
        detached_s=settings.stream_detached_s,
        keep_s=settings.stream_keep_s,
    )


class StreamService:
    """Opens streams, bounds how many there are, records each one's end exactly once."""

    def __init__(
        self,
        router: ModelRouterService,
        recorder: SessionRecorder,
        task_group: TaskGroup,
        *,
        node: str,
        limits: StreamLimits,
        tokens: StreamTokens,
        slots: CallerSlots | None = None,
        meter: SessionMeter | None = None,
        decisions: DecisionLog | None = None,
        tracer: Tracer | None = None,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        self.tokens = tokens
        self._router = router
        self._recorder = recorder
        self._tasks = task_group
        self._node = node
        self._limits = limits
        self._slots = slots or CallerSlots()
        self._meter = meter or Meter()
        self._decisions = decisions or DecisionLog()
        self._tracer = tracer
        self._now = now
        self._clock = clock
        self._sleep = sleep
        self._ids = RecordIds()
        self._live: dict[str, LiveStream] = {}
        self._ended = EndedStreams(max_bytes=limits.kept_bytes, clock=clock)
        self._idle = Bell()
        self.draining = False

    @property
    def live_count(self) -> int:
        return len(self._live)

    def open(
        self,
        request: GenerateRequest,
        *,
        face: str = "native",
        caller: Caller = ANYBODY,
        is_resumable: bool = False,
        is_detached: bool = False,
    ) -> StreamReader:
        """Accept a request and start it; whoever opens it must read the stream or leave it.

        Raises Overloaded when too many are open, TooManyStreams when the caller has too many, and
        ShuttingDown while the gateway drains. Every other error comes out of the stream.
        """
        stream, trail = self._accept(
            request, face, caller, is_resumable=is_resumable or is_detached, is_detached=is_detached
        )
        reader = stream.attach()
        if request.caller != caller.id:
            request = replace(request, caller=caller.id)
        self._begin(stream, request, trail, stream.put, None)
        return reader

    def ask(
        self,
        request: GenerateRequest,
        *,
        face: str = "native",
        caller: Caller = ANYBODY,
        told: Callable[[Generation | GatewayError], None],
    ) -> LiveStream:
        """Accept a request, and return the stream that it is; `told` is given the whole answer
        later, or the stream's own error, or StreamCancelled. Raises what `open` does.

        Nobody can read such a stream: its events are not kept. Who no longer wants it calls
        `forsake` of the stream.
        """
        stream, trail = self._accept(request, face, caller, is_awaited=True)
        awaited = _Awaited(stream, told)
        if not (request.is_whole and request.caller == caller.id):
            request = replace(request, caller=caller.id, is_whole=True)
        self._begin(stream, request, trail, awaited.take, awaited.end)
        return stream

    async def generate(
        self,
        request: GenerateRequest,
        *,
        face: str = "native",
        caller: Caller = ANYBODY,
        decided: Callable[[str], None] = lambda _: None,
    ) -> tuple[LiveStream, Generation]:
        """Accept a request; return its whole answer, and the stream that it was. Being cancelled
        stops the model. `decided` is told the decision's id at once.

        Raises what `open` does, the stream's own error, and StreamCancelled.
        """
        told: asyncio.Future[Generation | GatewayError] = asyncio.get_running_loop().create_future()
        stream = self.ask(request, face=face, caller=caller, told=partial(_settle, told))
        decided(stream.id)
        try:
            answer = await told
        except asyncio.CancelledError:
            stream.forsake()
            raise
        if isinstance(answer, GatewayError):
            raise answer
        return stream, answer

    def _accept(
        self,
        request: GenerateRequest,
        face: str,
        caller: Caller,
        *,
        is_resumable: bool = False,
        is_detached: bool = False,
        is_awaited: bool = False,
    ) -> tuple[LiveStream, Trail]:
        """Admit a request and return its stream; `_begin` must follow."""
        try:
            self._admit(caller)
        except GatewayError as error:
            self._meter.refused(error.code)
            raise
        at = self._now()
        opening = SessionOpened(
            id=self._ids.make(at),
            request_id=request.id,
            node=self._node,
            requested_model=request.model,
            opened_at=at,
            face=face,
            boot=self._recorder.boot,
            caller=caller.id,
        )
        trail = self._decisions.begin(opening, "stream")
        stream = LiveStream(
            opening,
            caller=caller.id,
            limits=self._limits,
            is_resumable=is_resumable,
            is_detached=is_detached,
            is_awaited=is_awaited,
            left=self._left,
            clock=self._clock,
        )
        self._live[stream.id] = stream
        return stream, trail

    def _admit(self, caller: Caller) -> None:
        if self.draining:
            raise ShuttingDown("The gateway is shutting down.")
        if len(self._live) >= self._limits.max_streams:
            raise Overloaded(f"All {self._limits.max_streams} streams are taken.")
        self._slots.take(caller.id, caller.max_streams)

    def find(self, stream_id: str, *, caller: str, token: str = "") -> LiveStream:
        """Return a stream of `caller`, or the one that `token` is for; ended ones while they are
        kept.

        Raises StreamNotFound, which does not tell whether it is somebody else's.
        """
        stream = self._live.get(stream_id) or self._ended.find(stream_id)
        if stream is None or not (stream.caller == caller or self.tokens.admits(stream_id, token)):
            raise StreamNotFound("You have no such stream, or it is no longer kept.")
        return stream

    def stop(self, stream_id: str, *, caller: str) -> bool:
        """Cancel a stream of `caller`; return whether it was running. Raises StreamNotFound."""
        stream = self.find(stream_id, caller=caller)
        was_running = not stream.is_ended
        stream.cancel()
        return was_running

    def of_caller(self, caller: str) -> list[LiveStream]:
        """Return the running streams of `caller`, oldest first."""
        return [stream for stream in self._live.values() if stream.caller == caller]

    def count_of(self, ref: ModelRef) -> int:
        """Return how many running streams a model answers, or is asked to."""
        return sum(stream.tally.ref == ref for stream in self._live.values())

    def used(self) -> dict[str, Usage]:
        """Return what every running stream used so far, by its id."""
        return {stream.id: stream.usage for stream in self._live.values()}

    def end_of(self, caller: str, error: GatewayError) -> None:
        """End every stream of `caller`: a reader sees `error`. What ended is kept no longer."""
        self._ended.drop(caller)
        for stream in self.of_caller(caller):
            stream.is_resumable = False
            stream.abort(error)

    async def drain(self, grace_s: float) -> None:
        """Refuse new streams, let the running ones finish for `grace_s`, then end them.

        Every reader sees a terminal event: its own end or a ShuttingDown error. Called again
        while it runs, the shorter grace wins.
        """
        self.draining = True
        with anyio.move_on_after(grace_s):
            await self.wait_idle()
        for stream in list(self._live.values()):
            stream.abort(ShuttingDown("The gateway shut down before the answer was complete."))
        await self.wait_idle()

    async def wait_idle(self) -> None:
        """Wait until no stream runs."""
        while self._live:
            await self._idle.wait()

    def _left(self, stream: LiveStream) -> None:
        """Decide about a stream whose reader left."""
        wait_s = self._limits.detached_s if stream.is_detached else self._limits.resume_s
        if stream.is_ended:
            return
        if wait_s and stream.is_resumable:
            self._tasks.start_soon(self._await_reader, stream, wait_s)
        else:
            stream.cancel()

    async def _await_reader(self, stream: LiveStream, wait_s: float) -> None:
        """Cancel a stream that gets no reader in time."""

        async def lose_patience() -> None:
            await self._sleep(wait_s)
            if not stream.has_reader:
                stream.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lose_patience)
            await stream.wait_attached()
            tasks.cancel_scope.cancel()

    def _begin(
        self,
        stream: LiveStream,
        request: GenerateRequest,
        trail: Trail,
        take: Tell,
        ended: Callable[[], None] | None,
    ) -> None:
        """Have the stream's model begin, and what it says given to `take`; `ended` is told once the
        stream has."""
        trace = self._tracer.stream(stream.opened) if self._tracer else None
        Owner(
            stream,
            request,
            trail,
            Ear(stream, self._recorder, take, trace),
            router=self._router,
            tasks=self._tasks,
            closed=partial(self._close, trace=trace, ended=ended),
        ).begin()

    def _close(
        self,
        stream: LiveStream,
        error: GatewayError | None,
        *,
        trace: StreamTrace | None,
        ended: Callable[[], None] | None,
    ) -> None:
        error = stream.error or error
        tally = stream.tally
        finished = tally.finished
        if finished is not None:
            end = _ENDS[finished.reason]
        else:
            end = StreamEnd.ERROR if error else StreamEnd.CANCELLED
        if tally.ref is None:
            self._recorder.opened(stream.opened)
        closed = SessionClosed(
            id=stream.id,
            provider=tally.ref.provider if tally.ref else None,
            model=tally.ref.qualified_model if tally.ref else None,
            end=end,
            closed_at=self._now(),
            usage=stream.usage,
            timings=stream.timings,
            error_code=error.code if error and finished is None else None,
            served_by=tally.served_by,
        )
        self._recorder.closed(closed)
        self._decisions.end(closed)
        self._meter.stream_ended(stream.opened.face, closed, tally.gaps)
        if trace is not None:
            trace.end(closed)
        logger.debug("stream %s of %s ended: %s", stream.id, stream.opened.requested_model, end)
        del self._live[stream.id]
        self._slots.free(stream.caller)
        stream.end(None if finished else error)
        keep_s = self._limits.detached_s if stream.is_detached else self._limits.keep_s
        if stream.is_resumable and keep_s:
            self._ended.keep(stream, keep_s)
        if not self._live:
            self._idle.ring()
        if ended is not None:
            ended()


class _Awaited:
    """Collects what a stream says for who wants all of it at once."""

    __slots__ = ("_collector", "_stream", "_told")

    def __init__(
        self, stream: LiveStream, told: Callable[[Generation | GatewayError], None]
    ) -> None:
        self._stream = stream
        self._told = told
        self._collector = Collector()

    def take(self, events: Sequence[Event]) -> None:
        self._collector.add_all(events)
        self._stream.observe(events)

    def end(self) -> None:
        error = self._stream.error
        answer: Generation | GatewayError
        try:
            answer = error.renewed() if error else self._collector.whole()
        except GatewayError as cancelled:
            answer = cancelled
        self._told(answer)


def _settle(
    told: asyncio.Future[Generation | GatewayError], answer: Generation | GatewayError
) -> None:
    if not told.done():  # who waited may have been cancelled
        told.set_result(answer)
