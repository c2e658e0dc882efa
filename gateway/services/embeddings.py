"""Admits embedding requests: how many at once, none while the gateway drains."""

from collections.abc import Iterator
from contextlib import contextmanager

import anyio
from msgspec.structs import replace

from gateway.core.embeddings import Embeddings, EmbedRequest
from gateway.core.errors import Overloaded, ShuttingDown
from gateway.core.keys import ANYBODY, Caller
from gateway.services.router import ModelRouterService
from gateway.services.slots import CallerSlots


class EmbeddingService:
    """Embeds for up to `max_open` requests at once. It keeps no records: nothing is generated."""

    def __init__(
        self, router: ModelRouterService, *, max_open: int, slots: CallerSlots | None = None
    ) -> None:
        self._router = router
        self._slots = slots or CallerSlots()
        self._max_open = max_open
        self._open: set[anyio.CancelScope] = set()
        self._idle = anyio.Event()
        self.draining = False

    async def embed(self, request: EmbedRequest, *, caller: Caller = ANYBODY) -> Embeddings:
        """Return one vector for each input; being cancelled stops the model.

        Raises Overloaded when too many are open, TooManyStreams when the caller has too many,
        ShuttingDown while the gateway drains, and what the router raises.
        """
        if self.draining:
            raise ShuttingDown("The gateway is shutting down.")
        if len(self._open) >= self._max_open:
            raise Overloaded(f"{self._max_open} embedding requests are open already.")
        with self._admitted(caller):
            return await self._router.embed(replace(request, caller=caller.id))
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

    @contextmanager
    def _admitted(self, caller: Caller) -> Iterator[None]:
        """Count a request as open; its body is left early when the drain loses patience."""
        self._slots.take(caller.id, caller.max_streams)
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
