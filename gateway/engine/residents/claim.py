"""One claim on a model: it says what it waits for until the model is there, and then holds it."""

from collections.abc import AsyncGenerator, Callable

import anyio

from gateway.core.errors import EngineFailed
from gateway.core.events import Waiting
from gateway.core.models import LocalModel
from gateway.engine.engine import Engine
from gateway.engine.residents.residence import Attempt, Model, Residence

TELL_EVERY_S = 0.5
"""How often who waits for a load is told how far it is."""


class Claim:
    """`residence` is set once the model is there; `attempt` is the load that it waits for."""

    def __init__(
        self,
        model: Model,
        files: LocalModel,
        *,
        advance: Callable[["Claim"], bool],
        clock: Callable[[], float],
        keep_alive_s: float | None = None,
        as_configured: bool = False,
    ) -> None:
        """`advance` does what can be done now without waiting, and tells whether the model is
        there. `as_configured` refuses a model that is loaded in another way than its config."""
        self.model = model
        self.files = files
        self.keep_alive_s = keep_alive_s
        self.as_configured = as_configured
        self.attempt: Attempt | None = None
        self.residence: Residence | None = None
        self._advance = advance
        self._clock = clock

    async def waits(self) -> AsyncGenerator[Waiting, None]:
        """Yield what it is waiting for, each time that changes, until the model is there.

        Raises what the load raises, and ShuttingDown.
        """
        told: Waiting | None = None
        while not self._advance(self):
            changed = self.model.changed
            waiting = self._describe()
            if waiting != told:
                told = waiting
                yield waiting
            with anyio.move_on_after(TELL_EVERY_S):
                await changed.wait()

    async def ready(self) -> Engine:
        """Return the engine once the model is there; raises as `waits` does."""
        while not self._advance(self):
            await self.model.changed.wait()
        return self.engine

    @property
    def engine(self) -> Engine:
        assert self.residence is not None, "not there yet"
        if self.residence.engine is None:
            raise EngineFailed("The model was unloaded.")
        return self.residence.engine

    def _describe(self) -> Waiting:
        attempt = self.model.attempt
        if attempt is not None and attempt.position is not None:
            return Waiting("queued", position=attempt.position)
        fraction, eta_s = self.model.progress(self._clock())
        return Waiting("loading", fraction=fraction, eta_s=eta_s)
