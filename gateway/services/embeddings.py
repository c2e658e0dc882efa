"""Admits embedding requests: how many at once, none while the gateway drains."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import anyio
import msgspec
from msgspec.structs import replace

from gateway import telemetry
from gateway.core.citations import quotable
from gateway.core.embeddings import Embeddings, EmbedRequest
from gateway.core.errors import GatewayError, Internal, Overloaded, ShuttingDown
from gateway.core.events import Timings, Usage
from gateway.core.keys import ANYBODY, Caller
from gateway.core.ports import SessionMeter, Tracer
from gateway.core.sessions import SessionClosed, SessionOpened
from gateway.core.states import StreamEnd
from gateway.core.trail import Trail
from gateway.services.decision_log import DecisionLog
from gateway.services.ids import RecordIds
from gateway.services.router import ModelRouterService
from gateway.services.slots import CallerSlots
from gateway.telemetry.meter import Meter

logger = logging.getLogger(__name__)


def _tell_nobody(_decision_id: str) -> None:
    pass


class EmbeddingService:
    """Embeds for up to `max_open` requests at once. Nothing is generated, so there is no record of
    a stream; there is a decision."""

    def __init__(
        self,
        router: ModelRouterService,
        *,
        max_open: int,
        slots: CallerSlots | None = None,
        meter: SessionMeter | None = None,
        decisions: DecisionLog | None = None,
        node: str = "",
        now: Callable[[], float] = time.time,
        tracer: Tracer | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._router = router
        self._meter = meter or Meter()
        self._decisions = decisions or DecisionLog()
        self._node = node
        self._now = now
        self._ids = RecordIds()
        self._tracer = tracer
        self._clock = clock
        self._slots = slots or CallerSlots()
        self._max_open = max_open
        self._open: set[anyio.CancelScope] = set()
        self._idle = anyio.Event()
        self.draining = False

    @property
    def open_count(self) -> int:
        return len(self._open)

    async def embed(
        self,
        request: EmbedRequest,
        *,
        face: str = "native",
        caller: Caller = ANYBODY,
        decided: Callable[[str], None] = _tell_nobody,
    ) -> Embeddings:
        """Return one vector for each input; being cancelled stops the model. `decided` is told the
        id of the decision as soon as there is one.

        Raises Overloaded when too many are open, TooManyStreams when the caller has too many,
        ShuttingDown while the gateway drains, and what the router raises.
        """
        try:
            self._admit(caller)
        except GatewayError as error:
            self._meter.refused(error.code)
            raise
        at = self._now()
        opened = SessionOpened(
            id=self._ids.make(at),
            request_id=request.id,
            node=self._node,
            requested_model=request.model,
            opened_at=at,
            face=face,
            caller=caller.id,
        )
        decided(opened.id)
        telemetry.decision_id.set(opened.id)
        traced = self._tracer.embedding(opened) if self._tracer else nullcontext()
        with self._admitted(caller), self._recorded(opened, request) as work, traced:
            request = replace(request, caller=caller.id)
            work.found = await self._router.embed(request, work.trail)
            return work.found
        raise ShuttingDown("The gateway shut down before the embeddings were complete.")

    async def drain(self, grace_s: float) -> None:
        """Refuse new requests, let the running ones finish for `grace_s`, then end them with
        ShuttingDown. Called again while it runs, the shorter grace wins."""
        self.draining = True
        with anyio.move_on_after(grace_s):
            await self._wait_idle()
        for scope in self._open:
            scope.cancel()
        await self._wait_idle()

    def _admit(self, caller: Caller) -> None:
        if self.draining:
            raise ShuttingDown("The gateway is shutting down.")
        if len(self._open) >= self._max_open:
            raise Overloaded(f"{self._max_open} embedding requests are open already.")
        self._slots.take(caller.id, caller.max_streams)

    @contextmanager
    def _recorded(self, opened: SessionOpened, request: EmbedRequest) -> Iterator["_Work"]:
        """Tell the meter and the decisions how a request ended, by what was found then."""
        begun, end, code = self._clock(), StreamEnd.CANCELLED, ""
        work = _Work(self._decisions.begin(opened, "embedding"))
        try:
            yield work
        except GatewayError as error:
            end, code = StreamEnd.ERROR, error.code
            texts = (each for each in request.inputs if isinstance(each, str))
            said = quotable(error.message, texts)
            logger.info("embedding %s failed: %s: %s", opened.id, code, said)
            raise
        except Exception:
            end, code = StreamEnd.ERROR, Internal.code
            raise
        finally:
            seconds = self._clock() - begun
            ref, usage = (work.found.ref, work.found.usage) if work.found else (None, None)
            self._meter.embedded(opened.face, ref, usage, code, seconds)
            self._decisions.end(
                SessionClosed(
                    id=opened.id,
                    provider=ref.provider if ref else None,
                    model=ref.qualified_model if ref else None,
                    end=StreamEnd.STOP if work.found else end,
                    closed_at=self._now(),
                    usage=usage or Usage(),
                    timings=Timings(total_ms=seconds * 1000),
                    error_code=code or None,
                )
            )

    @contextmanager
    def _admitted(self, caller: Caller) -> Iterator[None]:
        """Count a request as open; its body is left early when the drain loses patience."""
        if not self._open:
            self._idle = anyio.Event()
        with anyio.CancelScope() as scope:
            self._open.add(scope)
            try:
                yield
            finally:
                self._open.discard(scope)
                self._slots.free(caller.id)
                if not self._open:
                    self._idle.set()

    async def _wait_idle(self) -> None:
        while self._open:
            await self._idle.wait()


class _Work(msgspec.Struct):
    """An admitted request, and what came of it."""

    trail: Trail
    found: Embeddings | None = None
