"""ConfigService: what is decided for models, kept in the database over restarts of the gateway."""

import logging
import time
from collections.abc import Callable, Sequence

import anyio

from gateway.core.collections import SavedConfig
from gateway.core.errors import DatabaseUnavailable, GatewayError
from gateway.core.loading import ConfigChange, ConfigReport, ModelConfig
from gateway.core.ports import CollectionStore
from gateway.services.control import ModelControlService

logger = logging.getLogger(__name__)


class ConfigService:
    """Decides by the control service, and keeps what was decided."""

    def __init__(
        self,
        store: CollectionStore,
        control: ModelControlService,
        *,
        restored: anyio.Event | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`restored` is set once `restore` has decided all it can."""
        self._restored = restored or anyio.Event()
        self._store = store
        self._control = control
        self._now = now

    async def configure(self, name: str, change: ConfigChange) -> ConfigReport:
        """Change what is decided for a model. A database that does not answer costs only that it
        is kept, which is logged: inference goes before records."""
        report = await self._control.configure(name, change)
        saved = SavedConfig(str(report.ref), report.config)
        try:
            await self._store.put_config(saved, round(self._now(), 6))
        except DatabaseUnavailable as error:
            logger.warning("the config of %s is not kept: %s", report.ref, error.message)
        return report

    async def restore(self) -> None:
        """Decide for the models what was kept, for a gateway that starts."""
        try:
            configs = await self._store.configs()
            await self.apply([SavedConfig(model, config) for model, config in configs.items()])
        except DatabaseUnavailable as error:
            logger.warning("the configs of models are not restored: %s", error.message)
        finally:
            self._restored.set()

    async def apply(self, configs: Sequence[SavedConfig]) -> None:
        """Decide this for the models; one that is not here is passed over."""
        for saved in configs:
            try:
                await self._control.configure(saved.model, _whole(saved.config))
            except GatewayError as error:
                logger.info("%s is not configured now: %s", saved.model, error.message)


def _whole(config: ModelConfig) -> ConfigChange:
    return ConfigChange(config.load, config.defaults, config.keep_alive_s, config.pinned)
