"""The lease of one run of a gateway: while it is renewed, its open sessions are its own.

A run that dies leaves sessions open. The next one of its name closes them; where no such ever
comes, any other gateway before the same database does, once the lease has ended.
"""

import logging
from collections.abc import Awaitable, Callable

import anyio

from gateway.core.errors import DatabaseUnavailable
from gateway.core.ports import SessionStore

logger = logging.getLogger(__name__)

RENEWALS = 4
"""How often a lease is renewed in its time: some may fail."""


class BootLease:
    """Renews the lease of `boot`, and closes what others left open whose lease has ended."""

    def __init__(
        self,
        store: SessionStore,
        *,
        node: str,
        boot: str,
        lease_s: float,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        self._store = store
        self._node = node
        self._boot = boot
        self._lease_s = lease_s
        self._sleep = sleep

    async def run(self) -> None:
        """Renew for ever; end it by cancelling."""
        while True:
            try:
                await self._store.beat(self._node, self._boot)
                if count := await self._store.interrupt_expired(self._lease_s):
                    logger.warning("streams of gateways that are gone interrupted: %d", count)
            except DatabaseUnavailable as error:
                logger.debug("the lease is not renewed: %s", error.message)  # the recorder tells
            except Exception:
                logger.exception("the lease is not renewed")
            await self._sleep(self._lease_s / RENEWALS)
