"""Who owns a stream: runs its model to the end, and has its record closed whatever happens.

As long as all goes well nobody needs a task for that: the events come from a socket, and go on from
there. A task is for what waits, fails or is tried again.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial

import anyio
from anyio.abc import TaskGroup
from msgspec.structs import replace

from gateway import telemetry
from gateway.core.citations import quotable
from gateway.core.errors import GatewayError, Internal
from gateway.core.events import Event, Routed, Started
from gateway.core.messages import GenerateRequest
from gateway.core.ports import StreamTrace
from gateway.core.telling import Rest, Tell, Wait
from gateway.core.trail import Trail
from gateway.services.live import LiveStream
from gateway.services.recorder import SessionRecorder
from gateway.services.router import ModelRouterService

logger = logging.getLogger(__name__)

COMMIT_WAIT_S = 0.25
"""How long `started` waits for its record: durable before visible, but a slow database only
delays by this much."""


class Owner:
    """Owns one stream from `begin` on; `closed` is told its end once, and why it failed."""

    __slots__ = ("_cancel", "_closed", "_ear", "_request", "_router", "_stream", "_tasks", "_trail")

    def __init__(
        self,
        stream: LiveStream,
        request: GenerateRequest,
        trail: Trail,
        ear: "Ear",
        *,
        router: ModelRouterService,
        tasks: TaskGroup,
        closed: Callable[[LiveStream, GatewayError | None], None],
    ) -> None:
        self._stream = stream
        self._request = request
        self._trail = trail
        self._ear = ear
        self._router = router
        self._tasks = tasks
        self._closed = closed
        self._cancel: Callable[[], None] | None = None

    def begin(self) -> None:
        """Have the model begin; what it says is heard later."""
        asked = self._request, self._ear.hear, self._trail
        # A trace goes on in the context of a task.
        if not self._ear.is_traced:
            self._cancel = self._router.begin(*asked, self._go_on)
        if self._cancel is None:
            self._go_on(partial(self._router.answer, *asked))
        else:
            self._stream.stop_by(self._stop_soon)

    def _go_on(self, rest: Rest | None) -> None:
        """All was told, or there is something left to do."""
        self._cancel = None
        if rest is None:
            self._closed(self._stream, None)
        else:
            self._tasks.start_soon(self._run, rest, name=f"stream {self._stream.id}")

    def _stop_soon(self) -> None:
        # Not at once: who wants it may be the one who was just told something.
        asyncio.get_running_loop().call_soon(self._stop)

    def _stop(self) -> None:
        cancel, self._cancel = self._cancel, None
        if cancel is not None:
            cancel()
            self._closed(self._stream, None)

    async def _run(self, rest: Rest) -> None:
        telemetry.request_id.set(self._request.id)
        telemetry.decision_id.set(self._stream.id)
        error: GatewayError | None = None
        try:
            with anyio.CancelScope() as scope:
                self._stream.stop_by(scope.cancel)
                await rest()
        except GatewayError as known:
            said = quotable(known.message, self._request.texts)
            logger.info("stream %s failed: %s: %s", self._stream.id, known.code, said)
            error = known
        except Exception:
            logger.exception("stream %s failed", self._stream.id)
            error = Internal("Something went wrong inside the gateway.")
        finally:
            # Also when the whole task group is being cancelled: the record is queued, not awaited.
            self._closed(self._stream, error)


class Ear:
    """Hears what the router tells of one stream, has its opening recorded, and passes it on."""

    __slots__ = ("_is_open", "_recorder", "_stream", "_take", "_ticket", "_trace")

    def __init__(
        self,
        stream: LiveStream,
        recorder: SessionRecorder,
        take: Tell,
        trace: StreamTrace | None,
    ) -> None:
        self._stream = stream
        self._recorder = recorder
        self._take = take
        self._trace = trace
        self._ticket = 0
        self._is_open = False

    @property
    def is_traced(self) -> bool:
        return self._trace is not None

    def hear(self, events: Sequence[Event]) -> Wait | None:
        if self._trace is not None:
            for event in events:
                self._trace.observe(event)
        if type(events[0]) is Routed:
            self._open(events[0])
            return None
        if not self._is_open and any(type(event) is Started for event in events):
            self._is_open = True
            if not self._recorder.is_written(self._ticket):
                return partial(self._pass_on_written, events)
        return self._take(events)

    def _open(self, routed: Routed) -> None:
        # For the record alone: what readers see is numbered, and this is not shown.
        opened = self._stream.opened
        ref = routed.ref
        self._ticket = self._recorder.opened(
            replace(opened, provider=ref.provider, model=ref.qualified_model)
        )
        self._stream.observe((routed,))

    async def _pass_on_written(self, events: Sequence[Event]) -> None:
        """Say nothing of a stream of which nothing would be known after a crash."""
        await self._recorder.wait_written(self._ticket, COMMIT_WAIT_S)
        wait = self._take(events)
        if wait is not None:
            await wait()
