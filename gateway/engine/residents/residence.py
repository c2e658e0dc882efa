"""What the manager knows of one model, of each load of it, and of each of its stays in memory.

Touched on the event loop only.
"""

from collections.abc import Callable

import anyio
import msgspec

from gateway.core.decisions import Decisions
from gateway.core.errors import GatewayError, ModelUnloaded
from gateway.core.loading import (
    LoadConfig,
    ModelConfig,
    ModelStatus,
    estimate_eta,
)
from gateway.core.models import LocalModel, ModelStateChange, Resident
from gateway.core.names import ModelRef
from gateway.core.ports import ModelObserver
from gateway.core.states import ModelState, UnloadReason, require_transition
from gateway.engine.engine import Engine
from gateway.engine.files.progress import LoadProgress
from gateway.engine.memory.budget import Share

Estimate = Callable[[LocalModel, LoadConfig], int]
"""Returns the most bytes that a load takes at any moment. May block."""


class Place:
    """A model's place on a device, from before its load until after its unload."""

    def __init__(self, model: "Model", device: str, share: Share) -> None:
        self.model = model
        self.device = device
        self.share = share
        self.residence: Residence | None = None
        self.is_being_relieved = False

    @property
    def is_going(self) -> bool:
        """Whether it will be free soon, without anybody's doing."""
        return self.residence is not None and self.residence.unloading and not self.residence.leases

    def describe(self) -> Resident:
        """Return the place as eviction sees it: what is coming or going counts as in use."""
        model, residence = self.model, self.residence
        is_settled = residence is not None and not residence.unloading
        return Resident(
            ref=model.ref,
            memory_bytes=self.share.held_bytes,
            leases=residence.leases + model.queued if residence and is_settled else 1,
            last_used=residence.last_used if residence else 0.0,
            pinned=is_settled and model.config.pinned,
            expires_at=residence.expires_at if residence else None,
            basis="measured" if residence else "reserved",
            load_s=model.last_load_s,
        )


class Attempt:
    """One load, shared by all who wait for the model."""

    def __init__(self, model: "Model", files: LocalModel, config: LoadConfig) -> None:
        self.model = model
        self.files = files
        self.config = config
        self.progress = LoadProgress()
        self.place: Place | None = None
        self.position: int | None = None
        """Its place in the line, from 1, while it has to wait for room or for its turn."""
        self.began_at: float | None = None
        """When its weights began to be read."""
        self.error: GatewayError | None = None
        self.is_given_up = False
        self.done = anyio.Event()

    def give_up(self, reason: GatewayError) -> None:
        """End the load as soon as may be; who waits for it gets `reason` at once."""
        if not self.is_given_up:
            self.is_given_up, self.error = True, reason
            self.progress.cancel()
            self.model.notify()

    def require_wanted(self) -> None:
        """Raise if nobody wants the load: it was given up, or all left before it began."""
        if self.model.queued == 0 and self.began_at is None:
            self.give_up(ModelUnloaded(f"Nobody waits for {self.model.ref} any more."))
        if self.is_given_up and self.error is not None:
            raise self.error


class Residence:
    """One stay of a model in memory."""

    def __init__(self, attempt: Attempt, place: Place, engine: Engine) -> None:
        self.files = attempt.files
        self.config = attempt.config
        self.place = place
        place.residence = self
        self.engine: Engine | None = engine
        self.is_batched = engine.is_batched
        self.leases = 0
        self.last_used = 0.0
        self.keep_alive_s = -1.0
        self.unloading = False
        self.forced = False
        self.gone = anyio.Event()

    @property
    def expires_at(self) -> float | None:
        """When it is unloaded, if nobody uses it until then; None while it is in use."""
        model = self.place.model
        if self.leases or model.queued or model.config.pinned or self.unloading:
            return None
        return self.last_used + self.keep_alive_s if self.keep_alive_s >= 0 else None


class LastLoad(msgspec.Struct, frozen=True):
    """What a load of these files in this way was measured to take, and how the model ran."""

    files: LocalModel
    config: LoadConfig
    memory_bytes: int
    seconds: float
    is_batched: bool


class Model:
    """One model, whether it is in memory or not. `queued` are those who wait for it to be."""

    def __init__(
        self, ref: ModelRef, config: ModelConfig, observe: ModelObserver, estimate: Estimate
    ) -> None:
        self.ref = ref
        self.decisions = Decisions(config)
        self.files_bytes: int | None = None
        self.state = ModelState.NOT_LOADED
        self.error: GatewayError | None = None
        self.queued = 0
        self.attempt: Attempt | None = None
        self.residence: Residence | None = None
        self.changed = anyio.Event()
        self._last_load: LastLoad | None = None
        self._observe = observe
        self._estimate = estimate

    @property
    def config(self) -> ModelConfig:
        return self.decisions.config

    @property
    def memory_bytes(self) -> int:
        return self.residence.place.share.held_bytes if self.residence else 0

    @property
    def last_load_s(self) -> float | None:
        """What its last load took, whatever it was."""
        return self._last_load.seconds if self._last_load else None

    def enter(
        self,
        state: ModelState,
        error: GatewayError | None = None,
        reason: UnloadReason | None = None,
    ) -> None:
        """Go to another state; raises StaleTransition for one that cannot follow."""
        self.state = require_transition(self.state, state)
        # Without its traceback: the frames of a failed load may hold a whole model.
        self.error = error.renewed() if error else None
        message = error.message if error else None
        size_bytes = self.memory_bytes or self.files_bytes
        self._observe(ModelStateChange(self.ref, state, size_bytes, message, reason))
        self.notify()

    def notify(self) -> None:
        """Wake everybody who waits for something to change here."""
        changed, self.changed = self.changed, anyio.Event()
        changed.set()

    def remember(self, attempt: Attempt, engine: Engine, seconds: float) -> None:
        """Take note of what a load was measured to take."""
        self._last_load = LastLoad(
            attempt.files, attempt.config, engine.memory_bytes, seconds, engine.is_batched
        )

    def is_batched(self, files: LocalModel) -> bool | None:
        """Return whether its requests share steps: now, or when it was last loaded as it would be
        now; None where that is not known."""
        if self.residence is not None:
            return self.residence.is_batched
        last = self._last_load_of(files, self.config.load)
        return last.is_batched if last else None

    def need_bytes(self, files: LocalModel, config: LoadConfig) -> int:
        """Return what must be free for a load: what its files tell, and no less than what one was
        measured to take. Blocking."""
        last = self._last_load_of(files, config)
        return max(self._estimate(files, config), last.memory_bytes if last else 0)

    def status(self, now: float) -> ModelStatus:
        residence, attempt = self.residence, self.attempt
        expires_at = residence.expires_at if residence else None
        fraction, eta_s = self.progress(now)
        place = residence.place if residence else attempt.place if attempt else None
        return ModelStatus(
            ref=self.ref,
            state=self.state,
            config=self.config,
            memory_bytes=place.share.held_bytes if place else 0,
            leases=residence.leases if residence else 0,
            queued=self.queued,
            pinned=self.config.pinned,
            expires_in_s=None if expires_at is None else max(0.0, expires_at - now),
            fraction=fraction,
            eta_s=eta_s,
            device=place.device if place else None,
            batched=residence.is_batched if residence else None,
            packing=residence.engine.packing if residence and residence.engine else None,
            requires_reload=self.requires_reload,
            error=self.error,
        )

    @property
    def requires_reload(self) -> bool:
        return self.residence is not None and self.residence.config != self.config.load

    def progress(self, now: float) -> tuple[float | None, float | None]:
        """Return how much of the weights is read, and the seconds that are left, where known."""
        attempt = self.attempt
        if attempt is None or attempt.began_at is None:
            return None, None
        fraction = attempt.progress.fraction
        last = self._last_load_of(attempt.files, attempt.config)
        eta_s = estimate_eta(now - attempt.began_at, fraction, last.seconds if last else None)
        return None if fraction is None else round(fraction, 3), eta_s

    def _last_load_of(self, files: LocalModel, config: LoadConfig) -> LastLoad | None:
        last = self._last_load
        return last if last and (last.files, last.config) == (files, config) else None
