"""Admits embedding requests: how many at once, none while the gateway drains."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import anyio
from msgspec.structs import replace

from gateway.core.embeddings import Embeddings, EmbedRequest
from gateway.core.errors import GatewayError, Internal, Overloaded, ShuttingDown
from gateway.core.keys import ANYBODY, Caller
from gateway.core.ports import SessionMeter
from gateway.services.router import ModelRouterService
from gateway.services.slots import CallerSlots
from gateway.telemetry.meter import Meter


class EmbeddingService:
    """Embeds for up to `max_open` requests at once. It keeps no records: nothing is generated."""

    def __init__(
        self,
        router: ModelRouterService,
        *,
        max_open: int,
        slots: CallerSlots | None = None,
        meter: SessionMeter | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._router = router
        self._meter = meter or Meter()
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
        self, request: EmbedRequest, *, face: str = "native", caller: Caller = ANYBODY
    ) -> Embeddings:
        """Return one vector for each input; being cancelled stops the model.

        Raises Overloaded when too many are open, TooManyStreams when the caller has too many,
        ShuttingDown while the gateway drains, and what the router raises.
        """
        try:
            self._admit(caller)
        except GatewayError as error:
            self._meter.refused(error.code)
            raise
        with self._admitted(caller), self._metered(face) as found:
            found.append(await self._router.embed(replace(request, caller=caller.id)))
            return found[0]
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
    def _metered(self, face: str) -> Iterator[list[Embeddings]]:
        """Tell the meter how a request ended, by what is in the list then."""
        begun, found, code = self._clock(), list[Embeddings](), ""
        try:
            yield found
        except GatewayError as error:
            code = error.code
            raise
        except Exception:
            code = Internal.code
            raise
        finally:
            done = found[0] if found else None
            ref, usage = (done.ref, done.usage) if done else (None, None)
            self._meter.embedded(face, ref, usage, code, self._clock() - begun)

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
