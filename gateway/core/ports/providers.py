"""Sources of models, and who is told of what they do."""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from gateway.core.embeddings import Embeddings, EmbedRequest
from gateway.core.loading import ConfigChange, ConfigReport, LoadConfig, LoadPlan, ModelStatus
from gateway.core.messages import GenerateRequest
from gateway.core.models import ModelInfo, ModelStateChange, Resident
from gateway.core.names import ModelRef
from gateway.core.states import ModelState
from gateway.core.telling import Over, Tell


class Provider(Protocol):
    """One source of models. A new provider is one file in `gateway/providers`.

    Every method raises only `gateway.core.errors`: vendor exceptions stop at the provider.
    """

    @property
    def name(self) -> str: ...

    async def models(self) -> Sequence[ModelInfo]:
        """Return every model it could serve, with its present state. May hang: callers bound it."""
        ...

    async def answer(self, request: GenerateRequest, ref: ModelRef, tell: Tell) -> None:
        """Generate, and tell the grammar of `core.events`, with a Finished as the last; being
        cancelled stops the model within a token. Who has a generator leaves that to `tell_all`."""
        ...

    async def embed(self, request: EmbedRequest, ref: ModelRef) -> Embeddings:
        """Return one vector for each input; being cancelled stops the model."""
        ...

    async def resident(self) -> Sequence[Resident]:
        """Return the models in memory now."""
        ...

    async def load(
        self,
        ref: ModelRef,
        config: LoadConfig | None = None,
        *,
        pinned: bool | None = None,
        keep_alive_s: float | None = None,
    ) -> None:
        """Have the model in memory; returns once it is. What is None stays as it is.

        A model that is loaded in another way than `config` is unloaded first, as `unload` does.
        Cancelling the call stops the waiting, not a load that others wait for, too.
        """
        ...

    async def unload(self, ref: ModelRef, *, force: bool = False) -> None:
        """Have the model out of memory; returns once it is.

        Running streams may finish first; with `force` they end with ModelUnloaded. Who waits for
        a load that is under way gets ModelUnloaded.
        """
        ...

    async def plan(self, ref: ModelRef, config: LoadConfig | None = None) -> LoadPlan:
        """Return what `load` would do now. Its `ref` is the one spelling that stands for the
        model. Raises ModelNotFound, UnsupportedCapability."""
        ...

    async def status(self, ref: ModelRef | None = None) -> Sequence[ModelStatus]:
        """Return the status of one model, or of all that are or were asked for."""
        ...

    async def config(self, ref: ModelRef) -> ConfigReport: ...

    async def configure(self, ref: ModelRef, change: ConfigChange) -> ConfigReport:
        """Change the model's config; raises UnsupportedCapability for what cannot be set here."""
        ...

    async def aclose(self) -> None:
        """Let go of connections, threads and models. Called once, last."""
        ...


@runtime_checkable
class Eager(Protocol):
    """A provider that answers without a task of its own as long as all goes well: of what a request
    costs, a task and what it awaits is the most."""

    def begin(
        self, request: GenerateRequest, ref: ModelRef, tell: Tell, over: Over
    ) -> Callable[[], None] | None:
        """Begin to do as `answer`, and return what cancels it. None, and nothing was begun, where
        something is to be waited for first, or `answer` would fail.

        `over` is called once, and not before this has returned: when all was told, with Finished as
        the last, or with what is left to be done; that ends as `answer` would have. Who was
        cancelled calls neither `tell` nor `over` any more. What is left and was not begun is
        cancelled in the same way, what runs as any coroutine is; to cancel again does no harm.
        """
        ...


@runtime_checkable
class Continuer(Protocol):
    """A provider that goes on with an answer that another one began."""

    def continues(self, request: GenerateRequest, ref: ModelRef) -> bool:
        """Tell whether `answer` would take a `request` like this one with a text that was `said`,
        and tell only what follows it."""
        ...


@runtime_checkable
class StateTeller(Protocol):
    """A provider that knows without asking which of its models are in memory."""

    def state_of(self, ref: ModelRef) -> ModelState | None:
        """Return the state of a model at this moment; None: the last listing knows as much."""
        ...


@runtime_checkable
class ModelRemover(Protocol):
    """A provider that keeps files of its own, and removes them when asked."""

    async def delete(self, ref: ModelRef) -> None:
        """Remove the model's files. Raises ModelNotFound."""
        ...


class ModelObserver(Protocol):
    """Is told of every state change of a model, on the event loop, in order; must not block."""

    def __call__(self, change: ModelStateChange) -> None: ...
