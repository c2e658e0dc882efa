"""Live streams: each has an id, one task that owns it, and a bounded buffer for its reader.

The owning task, not the reader, runs the model's generator and writes the terminal record, so a
reader may vanish at any point and nothing is left open.
"""

import logging
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing

import anyio
from anyio.abc import TaskGroup
from msgspec.structs import replace

from gateway.core.errors import GatewayError, Internal, Overloaded, ShuttingDown
from gateway.core.events import Event, Routed, Started, Timings
from gateway.core.messages import GenerateRequest
from gateway.core.names import ModelRef
from gateway.core.sessions import SessionClosed, SessionOpened
from gateway.core.states import StreamEnd
from gateway.services.recorder import SessionRecorder
from gateway.services.router import ModelRouterService
from gateway.services.tally import Tally

logger = logging.getLogger(__name__)

COMMIT_WAIT_S = 0.25
"""How long `started` waits for its record: durable before visible, but a slow database only
delays by this much."""


class LiveStream:
    """One stream as its reader sees it. One reader; use it as `async with`, or call `aclose`."""

    def __init__(self, stream_id: str, *, limit: int, clock: Callable[[], float]) -> None:
        self.id = stream_id
        self.tally = Tally(opened_at=clock())
        self._limit = limit
        self._clock = clock
        self._events: deque[Event] = deque()
        self._error: GatewayError | None = None
        self._ended = False
        self._changed = anyio.Event()
        self._scope = anyio.CancelScope()

    async def __aenter__(self) -> "LiveStream":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()

    @property
    def timings(self) -> Timings:
        """The timings of the whole stream, or so far while it runs."""
        return self.tally.timings(self._clock())

    def __aiter__(self) -> AsyncIterator[Event]:
        return self._each()

    async def _each(self) -> AsyncGenerator[Event, None]:
        while events := await self.read():
            for event in events:
                yield event

    async def read(self) -> list[Event]:
        """Return every event that is ready, waiting for the first; an empty list is the end.

        Raises the stream's error once its events are read.
        """
        while not self._events:
            if self._ended:
                if self._error is not None:
                    raise self._error
                return []
            await self._changed.wait()
        events = list(self._events)
        self._events.clear()
        self._notify()
        return events

    def cancel(self) -> None:
        """Stop the model: nobody reads any more. Harmless after the end."""
        if not self._ended:
            self._scope.cancel()

    def abort(self, error: GatewayError) -> None:
        """Stop the model and let the reader see `error` as the end."""
        if not self._ended and self._error is None:
            self._error = error
            self._scope.cancel()

    async def _put(self, event: Event) -> None:
        while len(self._events) >= self._limit:
            await self._changed.wait()
        self._events.append(event)
        self._notify()

    def _end(self, error: GatewayError | None) -> None:
        self._error = error
        self._ended = True
        self._notify()

    def _notify(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()


class StreamService:
    """Opens streams, bounds how many there are, records each one's end exactly once."""

    def __init__(
        self,
        router: ModelRouterService,
        recorder: SessionRecorder,
        task_group: TaskGroup,
        *,
        node: str,
        max_streams: int,
        buffer_events: int,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._router = router
        self._recorder = recorder
        self._tasks = task_group
        self._node = node
        self._max_streams = max_streams
        self._buffer_events = buffer_events
        self._now = now
        self._clock = clock
        self._live: dict[str, LiveStream] = {}
        self._idle = anyio.Event()
        self.draining = False

    @property
    def live_count(self) -> int:
        return len(self._live)

    def open(
        self, request: GenerateRequest, *, face: str = "native", caller: str = ""
    ) -> LiveStream:
        """Accept a request and start it; whoever opens it must read the stream or cancel it.

        Raises Overloaded when too many are open and ShuttingDown while the gateway drains. Every
        other error comes out of the stream.
        """
        if self.draining:
            raise ShuttingDown("The gateway is shutting down.")
        if len(self._live) >= self._max_streams:
            raise Overloaded(f"All {self._max_streams} streams are taken.")
        request = replace(request, caller=caller)
        stream = LiveStream(secrets.token_hex(12), limit=self._buffer_events, clock=self._clock)
        if not self._live:
            self._idle = anyio.Event()
        self._live[stream.id] = stream
        opening = SessionOpened(
            id=stream.id,
            request_id=request.id,
            node=self._node,
            requested_model=request.model,
            opened_at=self._now(),
            face=face,
        )
        self._tasks.start_soon(self._own, stream, request, opening, name=f"stream {stream.id}")
        return stream

    async def drain(self, grace_s: float) -> None:
        """Refuse new streams, let the running ones finish for `grace_s`, then end them.

        Every reader sees a terminal event: its own end or a ShuttingDown error. Called again
        while it runs, the shorter grace wins.
        """
        self.draining = True
        with anyio.move_on_after(grace_s):
            await self._wait_idle()
        for stream in list(self._live.values()):
            stream.abort(ShuttingDown("The gateway shut down before the answer was complete."))
        await self._wait_idle()

    async def _wait_idle(self) -> None:
        while self._live:
            await self._idle.wait()

    async def _own(
        self, stream: LiveStream, request: GenerateRequest, opening: SessionOpened
    ) -> None:
        error: GatewayError | None = None
        try:
            with stream._scope:
                await self._pump(stream, request, opening)
        except GatewayError as known:
            logger.info("stream %s failed: %s: %s", stream.id, known.code, known.message)
            error = known
        except Exception:
            logger.exception("stream %s failed", stream.id)
            error = Internal("Something went wrong inside the gateway.")
        finally:
            # Also when the whole task group is being cancelled: the record is queued, not awaited.
            self._close(stream, opening, stream._error or error)

    async def _pump(
        self, stream: LiveStream, request: GenerateRequest, opening: SessionOpened
    ) -> None:
        ticket = 0
        async with aclosing(self._router.stream(request)) as events:
            async for event in events:
                if isinstance(event, Routed):
                    ticket = self._recorder.opened(_routed(opening, event.ref))
                elif isinstance(event, Started):
                    await self._recorder.wait_written(ticket, COMMIT_WAIT_S)
                await stream._put(event)
                # After the put: what was cut off before the reader could have it does not count.
                stream.tally.observe(event, self._clock())

    def _close(
        self, stream: LiveStream, opening: SessionOpened, error: GatewayError | None
    ) -> None:
        tally = stream.tally
        finished = tally.finished
        if finished is not None:
            end = StreamEnd(finished.reason)
        else:
            end = StreamEnd.ERROR if error else StreamEnd.CANCELLED
        if tally.ref is None:
            self._recorder.opened(opening)
        self._recorder.closed(
            SessionClosed(
                id=stream.id,
                provider=tally.ref.provider if tally.ref else None,
                model=tally.ref.qualified_model if tally.ref else None,
                end=end,
                closed_at=self._now(),
                usage=tally.usage,
                timings=stream.timings,
                error_code=error.code if error and finished is None else None,
            )
        )
        logger.debug("stream %s of %s ended: %s", stream.id, opening.requested_model, end)
        del self._live[stream.id]
        stream._end(None if finished else error)
        if not self._live:
            self._idle.set()


def _routed(opening: SessionOpened, ref: ModelRef) -> SessionOpened:
    return replace(opening, provider=ref.provider, model=ref.qualified_model)
