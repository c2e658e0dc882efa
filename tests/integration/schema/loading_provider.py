"""A provider whose models are loaded in memory only, and which tells every transition of them."""

from collections.abc import Sequence

import anyio
from msgspec.structs import replace

from gateway.core.errors import GatewayError
from gateway.core.loading import (
    ConfigChange,
    ConfigReport,
    LoadConfig,
    LoadPlan,
    ModelConfig,
    ModelStatus,
)
from gateway.core.models import ModelInfo, ModelStateChange
from gateway.core.names import ModelRef
from gateway.core.ports import ModelObserver
from gateway.core.states import ModelState
from tests.integration.schema.listing_provider import ListingProvider

NEED_BYTES, BUDGET_BYTES = 1000, 5000


class LoadingProvider(ListingProvider):
    """Loads what it lists once `gate` is set, which it is unless a test takes another one."""

    def __init__(self, name: str, listed: Sequence[ModelInfo] = ()) -> None:
        super().__init__(name, listed)
        self.gate = anyio.Event()
        self.gate.set()
        self.load_error: GatewayError | None = None
        self.observe: ModelObserver = lambda change: None
        self._configs: dict[ModelRef, ModelConfig] = {}
        self._statuses: dict[ModelRef, ModelStatus] = {}

    async def load(
        self,
        ref: ModelRef,
        config: LoadConfig | None = None,
        *,
        pinned: bool | None = None,
        keep_alive_s: float | None = None,
    ) -> None:
        known = self._configs.get(ref, ModelConfig())
        self._configs[ref] = ConfigChange(
            load=config,
            pinned=pinned,
            keep_alive_s=known.keep_alive_s if keep_alive_s is None else keep_alive_s,
        ).of(known)
        self._set(ref, ModelState.LOADING, fraction=0.5, eta_s=1.5)
        await self.gate.wait()
        if self.load_error is not None:
            self._set(ref, ModelState.FAILED, error=self.load_error)
            raise self.load_error
        self._set(ref, ModelState.LOADED, memory_bytes=NEED_BYTES, device="cpu", batched=True)

    async def unload(self, ref: ModelRef, *, force: bool = False) -> None:
        self._set(ref, ModelState.UNLOADING)
        self._set(ref, ModelState.NOT_LOADED)

    async def plan(self, ref: ModelRef, config: LoadConfig | None = None) -> LoadPlan:
        need = (config.context_length if config else None) or NEED_BYTES
        return LoadPlan(
            ref,
            need_bytes=need,
            free_bytes=BUDGET_BYTES,
            budget_bytes=BUDGET_BYTES,
            fits=need <= BUDGET_BYTES,
            reason=None if need <= BUDGET_BYTES else f"{ref} does not fit.",
        )

    async def status(self, ref: ModelRef | None = None) -> Sequence[ModelStatus]:
        found = [each for each in self._statuses.values() if ref in (None, each.ref)]
        return [replace(each, config=(await self.config(each.ref)).config) for each in found]

    async def config(self, ref: ModelRef) -> ConfigReport:
        return ConfigReport(ref, self._configs.get(ref, ModelConfig()))

    async def configure(self, ref: ModelRef, change: ConfigChange) -> ConfigReport:
        self._configs[ref] = change.of(self._configs.get(ref, ModelConfig()))
        return ConfigReport(ref, self._configs[ref], requires_reload=change.load is not None)

    def _set(self, ref: ModelRef, state: ModelState, **facts: object) -> None:
        status = self._statuses[ref] = replace(ModelStatus(ref, state), **facts)
        message = status.error.message if status.error else None
        self.observe(ModelStateChange(ref, state, message=message))
