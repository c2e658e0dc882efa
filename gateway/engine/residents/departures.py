"""How models leave memory: once nobody uses them, by force, when their time is over, or dead.

Touched on the event loop only.
"""

from collections.abc import Awaitable, Callable

from anyio.abc import TaskGroup

from gateway.core.errors import EngineFailed
from gateway.core.states import ModelState, UnloadReason
from gateway.engine.engine import Engine
from gateway.engine.residents.alarm import Alarm
from gateway.engine.residents.placement import Placement
from gateway.engine.residents.residence import Model, Residence


class Departures:
    """Ends the stays of models; whoever waits for that waits for a residence's `gone`."""

    def __init__(
        self,
        placement: Placement,
        task_group: TaskGroup,
        *,
        keep_alive_s: float,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        """`keep_alive_s` is how long an idle model stays if neither its config nor a request says
        so (negative: until its room is needed)."""
        self.is_closing = False
        self._placement = placement
        self._tasks = task_group
        self._keep_alive_s = keep_alive_s
        self._clock = clock
        self._alarm = Alarm(self._expire, task_group, clock=clock, sleep=sleep)

    def close(self) -> None:
        """From now on nothing expires, and what departs waits for nobody who uses it."""
        self.is_closing = True
        self._alarm.cancel()

    def begin(self, residence: Residence, reason: UnloadReason) -> None:
        """Unload a model; of one that is being unloaded, look again whether it may go."""
        if residence.unloading:
            residence.place.model.notify()
            return
        residence.unloading = True
        model = residence.place.model
        model.enter(ModelState.UNLOADING, reason=reason)
        self._tasks.start_soon(self._take_down, residence, name=f"unload {model.ref}")

    async def watch(self, model: Model, engine: Engine) -> None:
        """Notice at once when an engine dies, though nobody may be asking it anything."""
        await engine.wait_ended()
        self.bury_if_dead(model)
        model.notify()

    def bury_if_dead(self, model: Model) -> None:
        """Give up an engine that died."""
        residence = model.residence
        if residence is None or residence.unloading or self.is_closing:
            return
        if residence.engine is not None and residence.engine.alive:
            return
        residence.unloading = True
        model.enter(ModelState.UNLOADING, reason=UnloadReason.DIED)
        model.residence = None
        model.enter(ModelState.FAILED, EngineFailed(f"The engine of {model.ref} died."))
        self._tasks.start_soon(self._take_down, residence, name=f"bury {model.ref}")

    def keep_alive_of(self, model: Model) -> float:
        """Return how long it stays, once nobody uses it, where no request said so."""
        own = model.config.keep_alive_s
        return self._keep_alive_s if own is None else own

    def expire_later(self, model: Model) -> None:
        """See to it that an idle model goes when its time is over, and at once if it is."""
        at = model.residence.expires_at if model.residence else None
        if at is None or self.is_closing:
            return
        if at <= self._clock():
            self._expire()
        else:
            self._alarm.set(at)

    def _expire(self) -> None:
        """Unload the models whose time is over, and come back for the next."""
        for place in list(self._placement):
            residence = place.residence
            at = residence.expires_at if residence else None
            if residence is None or at is None:
                continue
            if at <= self._clock():
                self.begin(residence, UnloadReason.IDLE)
            else:
                self._alarm.set(at)

    async def _take_down(self, residence: Residence) -> None:
        """Free a model as soon as nobody uses it, or at once where that is forced or it died.

        Who still reads from it then holds what it said, and nothing of the model.
        """
        model, engine = residence.place.model, residence.engine
        assert engine is not None, "it is taken down once"
        while residence.leases and engine.alive and not (residence.forced or self.is_closing):
            await model.changed.wait()
        try:
            await engine.aclose()
        finally:
            residence.engine = None
            self._placement.leave(residence.place)
            residence.gone.set()
            if model.residence is residence:
                model.residence = None
                model.enter(ModelState.NOT_LOADED)
