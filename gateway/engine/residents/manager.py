"""HuggingFaceModelManager: which models are in memory, for whom, and how they are configured.

How they come is in `loads.py`, how they go in `departures.py`, where they lie in `placement.py`.

All state is touched on the event loop only, so it needs no locks. Weights move elsewhere, in
threads or in processes of their own, one load at a time.
"""

import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from gateway.core.errors import (
    EngineFailed,
    GatewayError,
    ModelUnloaded,
    ShuttingDown,
)
from gateway.core.loading import (
    ConfigChange,
    ConfigReport,
    LoadConfig,
    LoadPlan,
    ModelConfig,
    ModelStatus,
)
from gateway.core.models import LocalModel, Resident
from gateway.core.names import ModelRef
from gateway.core.ports import ModelObserver
from gateway.core.states import ModelState, UnloadReason
from gateway.engine.engine import Engine
from gateway.engine.files.needs import estimate_load
from gateway.engine.memory.ledger import MemoryLedger
from gateway.engine.residents.claim import Claim
from gateway.engine.residents.departures import Departures
from gateway.engine.residents.loads import Loads, Open
from gateway.engine.residents.placement import Placement
from gateway.engine.residents.residence import Estimate, Model, Residence


class HuggingFaceModelManager:
    """Gives leases on loaded models.

    Many who ask for one model share one load, and none of them leaving disturbs it. A model that
    is leased or pinned is never evicted; room is made from idle ones, by count and by bytes, as the
    ledger's policy says.
    """

    def __init__(
        self,
        *,
        open: Open,
        choose_device: Callable[[LoadConfig], str],
        ledger: MemoryLedger,
        task_group: TaskGroup,
        observe: ModelObserver,
        max_models: int,
        place_wait_s: float = 0.0,
        keep_alive_s: float = -1.0,
        default_config: ModelConfig = ModelConfig(),  # noqa: B008
        estimate: Estimate = estimate_load,
        overhead_bytes: Callable[[], int] = lambda: 0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        """`open` must not block the event loop; `choose_device` and `estimate`, which returns what
        a load takes at the most, may, and run in a thread. `overhead_bytes` returns what loads so
        far left with the process, whichever models go.

        `place_wait_s` is how long a load waits for models in use, `keep_alive_s` how long an idle
        model stays if neither its config nor a request says so (negative: until its room is
        needed); `clock` must be the ledger's, and `sleep` go by it.
        """
        self._observe = observe
        self._default_config = default_config
        self._estimate = estimate
        self._clock = clock
        self._ledger = ledger
        self._placement = Placement(
            ledger,
            choose_device=choose_device,
            evict=lambda residence: self._departures.begin(residence, UnloadReason.ROOM),
            overhead_bytes=overhead_bytes,
            max_models=max_models,
            wait_s=place_wait_s,
        )
        self._departures = Departures(
            self._placement, task_group, keep_alive_s=keep_alive_s, clock=clock, sleep=sleep
        )
        self._loads = Loads(open, self._placement, self._departures, task_group, clock=clock)
        self._models: dict[ModelRef, Model] = {}

    def state_of(self, ref: ModelRef) -> tuple[ModelState, str | None]:
        """Return a model's state and, where it failed, why."""
        model = self._models.get(ref)
        if model is None:
            return ModelState.NOT_LOADED, None
        return model.state, model.error.message if model.error else None

    def is_batched(self, ref: ModelRef, files: LocalModel) -> bool | None:
        """Return whether a model's requests share its steps; None before its first load."""
        model = self._models.get(ref)
        return None if model is None else model.is_batched(files)

    def find(self, ref: ModelRef) -> ModelRef | None:
        """Return the ref that a model is known by here, which may be its revision's in memory."""
        if ref in self._models:
            return ref
        for place in self._placement:
            known, residence = place.model.ref, place.residence
            if residence and known.model == ref.model and residence.files.revision == ref.revision:
                return known
        return None

    def residents(self) -> list[Resident]:
        """Return the models in memory, and those that are being loaded."""
        return [place.describe() for place in self._placement]

    def statuses(self, ref: ModelRef | None = None) -> list[ModelStatus]:
        """Return the status of one model, or of all that anybody asked for."""
        models = self._models.values() if ref is None else filter(None, [self._models.get(ref)])
        return [model.status(self._clock()) for model in models]

    def config(self, ref: ModelRef) -> ConfigReport:
        model = self._models.get(ref) or self._new_model(ref)
        return ConfigReport(ref, model.config, model.requires_reload)

    def configure(self, ref: ModelRef, change: ConfigChange) -> ConfigReport:
        """Change a model's config: `load` holds at its next load, the rest at once."""
        model, before = self._model(ref), self.config(ref).config
        model.decisions.add(change, is_final=True)
        residence = model.residence
        if residence and model.config.keep_alive_s != before.keep_alive_s:
            residence.keep_alive_s = self._departures.keep_alive_of(model)
        self._config_changed(model)
        return self.config(ref)

    async def plan(
        self, ref: ModelRef, files: LocalModel, config: LoadConfig | None = None
    ) -> LoadPlan:
        """Return what a load would do now; loading right after does just that."""
        model = self._models.get(ref) or self._new_model(ref)
        return await self._placement.plan(model, files, config or model.config.load)

    @asynccontextmanager
    async def lease(
        self, ref: ModelRef, files: LocalModel, keep_alive_s: float | None = None
    ) -> AsyncGenerator[Engine, None]:
        """Give the engine of a model, loading it first if need be; it stays while the lease lasts.

        Raises what `claim` does.
        """
        async with self.claim(ref, files, keep_alive_s) as claim:
            yield await claim.ready()

    @asynccontextmanager
    async def claim(
        self,
        ref: ModelRef,
        files: LocalModel,
        keep_alive_s: float | None = None,
        *,
        as_configured: bool = False,
    ) -> AsyncGenerator[Claim, None]:
        """Give a claim on a model, which tells what it waits for until the model is there.

        `keep_alive_s` is how long the model stays once nobody uses it (0: not at all, negative:
        until its room is needed); the last one said holds. A model whose files were replaced is
        loaded anew as soon as nobody uses the old one; `as_configured` also unloads one that is
        loaded in another way than its config says. One that is being unloaded is loaded anew.

        The claim raises ModelLoadFailed, ModelTooLarge, NoRoom (all others are in use or pinned),
        ModelUnloaded (somebody unloaded it meanwhile), ShuttingDown.
        """
        claim = Claim(
            self._model(ref),
            files,
            advance=self._advance,
            clock=self._clock,
            keep_alive_s=keep_alive_s,
            as_configured=as_configured,
        )
        claim.model.queued += 1
        try:
            yield claim
        except EngineFailed as error:
            if claim.residence is not None and claim.residence.forced:
                raise _unloaded(ref) from error
            raise
        finally:
            self._leave(claim)

    async def load(
        self,
        ref: ModelRef,
        files: LocalModel,
        config: LoadConfig | None = None,
        *,
        pinned: bool | None = None,
        keep_alive_s: float | None = None,
    ) -> None:
        """Have a model in memory as its config says, with these changes; raises as `claim`, and
        then takes the changes back.

        One that is loaded in another way is unloaded first, once its streams have finished.
        """
        model = self._model(ref)
        decision = model.decisions.add(ConfigChange(load=config, pinned=pinned), is_final=False)
        self._config_changed(model)
        try:
            async with self.claim(ref, files, keep_alive_s, as_configured=True) as claim:
                await claim.ready()
        except BaseException:
            model.decisions.take_back(decision)
            self._config_changed(model)
            raise
        model.decisions.confirm(decision)

    async def unload(self, ref: ModelRef, *, force: bool = False) -> None:
        """Have a model out of memory; returns once it is.

        Streams that run may finish first, unless `force` ends them with ModelUnloaded. A load that
        is under way is given up; who waits for it gets ModelUnloaded.
        """
        model = self._models.get(ref)
        if model is None:
            return
        if attempt := model.attempt:
            attempt.give_up(ModelUnloaded(f"The load of {ref} was cancelled: it was unloaded."))
            self._ledger.notify()
            await attempt.done.wait()
        if residence := model.residence:
            residence.forced = residence.forced or force
            self._departures.begin(residence, UnloadReason.ASKED)
            await residence.gone.wait()
        if model.state is ModelState.FAILED:
            model.enter(ModelState.NOT_LOADED)

    def record_failure(self, ref: ModelRef, error: GatewayError) -> None:
        """Show a model as failed that could not even be found."""
        model = self._model(ref)
        if model.state in (ModelState.NOT_LOADED, ModelState.FAILED):
            model.enter(ModelState.LOADING)
            model.enter(ModelState.FAILED, error)

    async def aclose(self) -> None:
        """Unload everything. Streams that still run get EngineFailed."""
        self._departures.close()
        for model in self._models.values():
            if model.attempt:
                model.attempt.give_up(_shutting_down())
            model.notify()
        self._ledger.notify()
        for model in list(self._models.values()):
            if model.attempt:
                await model.attempt.done.wait()
        for place in list(self._placement):
            if place.residence:
                self._departures.begin(place.residence, UnloadReason.STOPPING)
                await place.residence.gone.wait()

    def _model(self, ref: ModelRef) -> Model:
        if ref not in self._models:
            self._models[ref] = self._new_model(ref)
        return self._models[ref]

    def _new_model(self, ref: ModelRef) -> Model:
        return Model(ref, self._default_config, self._observe, self._estimate)

    def _config_changed(self, model: Model) -> None:
        self._departures.expire_later(model)
        model.notify()
        self._ledger.notify()

    def _advance(self, claim: Claim) -> bool:
        """Do what can be done now for a claim; True once it has the model. Awaits nothing, so
        nobody comes between looking and taking."""
        if self._departures.is_closing:
            raise _shutting_down()
        model, joined = claim.model, claim.attempt
        if joined is not None and joined.error is not None:
            raise joined.error.renewed()
        self._departures.bury_if_dead(model)
        residence = model.residence
        if residence is not None and not residence.unloading:
            if self._must_go(residence, claim):
                self._departures.begin(residence, UnloadReason.REPLACED)
            else:
                self._grant(claim, residence)
                return True
        if model.residence is None:
            if model.attempt is None:
                self._loads.begin(model, claim.files)
            if model.attempt is not None and not model.attempt.is_given_up:
                claim.attempt = model.attempt
        return False

    def _must_go(self, residence: Residence, claim: Claim) -> bool:
        """Tell whether the claim needs the model loaded anew."""
        if claim.as_configured and residence.config != claim.model.config.load:
            return True
        # What this very claim had loaded is right, whatever has become of the files meanwhile.
        return claim.attempt is None and residence.files != claim.files and residence.leases == 0

    def _grant(self, claim: Claim, residence: Residence) -> None:
        self._ledger.asked(claim.model.ref)
        claim.residence = residence
        claim.model.queued -= 1
        residence.leases += 1
        if claim.keep_alive_s is not None:
            residence.keep_alive_s = claim.keep_alive_s

    def _leave(self, claim: Claim) -> None:
        model, residence = claim.model, claim.residence
        if residence is None:
            model.queued -= 1
        else:
            residence.leases -= 1
            residence.last_used = self._clock()
        model.notify()
        self._ledger.notify()
        self._departures.expire_later(model)


def _unloaded(ref: ModelRef) -> ModelUnloaded:
    return ModelUnloaded(f"{ref} was unloaded while it answered.")


def _shutting_down() -> ShuttingDown:
    return ShuttingDown("The gateway is shutting down.")
