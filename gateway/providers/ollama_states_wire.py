"""What the gateway itself does to Ollama's models: the server tells nothing while it loads one."""

from collections.abc import Iterator
from contextlib import contextmanager

from msgspec.structs import replace

from gateway.core.errors import GatewayError, ModelNotFound
from gateway.core.models import ModelInfo, ModelStateChange
from gateway.core.names import ModelRef
from gateway.core.ports import ModelObserver
from gateway.core.states import ModelState, UnloadReason
from gateway.providers.ollama_listing_wire import name_key


class ModelStates:
    """The states that no listing of the server shows. Each change is told to `observe`."""

    def __init__(self, observe: ModelObserver) -> None:
        self._observe = observe
        self._hidden: dict[str, ModelStateChange] = {}

    @contextmanager
    def loading(self, ref: ModelRef, size_bytes: int | None) -> Iterator[None]:
        """Show a model as on its way into memory; if the block raises, as failed."""
        self._enter(ModelStateChange(ref, ModelState.LOADING, size_bytes))
        try:
            yield
        except GatewayError as error:
            if isinstance(error, ModelNotFound):  # there is no such model to be shown
                self._leave(ModelStateChange(ref, ModelState.NOT_LOADED, size_bytes))
            else:
                self._enter(ModelStateChange(ref, ModelState.FAILED, size_bytes, error.message))
            raise
        except BaseException:
            self._leave(ModelStateChange(ref, ModelState.NOT_LOADED, size_bytes))
            raise
        self._leave(ModelStateChange(ref, ModelState.LOADED, size_bytes))

    @contextmanager
    def unloading(self, ref: ModelRef, size_bytes: int | None) -> Iterator[None]:
        """Show a model as on its way out of memory; if the block raises, as loaded still."""
        self._enter(
            ModelStateChange(ref, ModelState.UNLOADING, size_bytes, reason=UnloadReason.ASKED)
        )
        try:
            yield
        except BaseException:
            self._leave(ModelStateChange(ref, ModelState.LOADED, size_bytes))
            raise
        self._leave(ModelStateChange(ref, ModelState.NOT_LOADED, size_bytes))

    def forget_failure(self, ref: ModelRef) -> None:
        """Show a model that failed as not loaded."""
        known = self._hidden.get(name_key(ref))
        if known is not None and known.state is ModelState.FAILED:
            self._leave(replace(known, state=ModelState.NOT_LOADED, message=None))

    def over(self, listed: ModelInfo) -> ModelInfo:
        """Return a line of a listing with what the server does not know."""
        known = self._hidden.get(name_key(listed.ref))
        if known is None or (
            known.state is ModelState.FAILED and listed.state is ModelState.LOADED
        ):
            return listed
        return replace(listed, state=known.state, message=known.message)

    def _enter(self, change: ModelStateChange) -> None:
        self._hidden[name_key(change.ref)] = change
        self._observe(change)

    def _leave(self, change: ModelStateChange) -> None:
        self._hidden.pop(name_key(change.ref), None)
        self._observe(change)
