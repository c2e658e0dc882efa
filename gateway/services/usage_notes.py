"""Writes down now and then what the running streams used so far: all that is known of those that
a dying gateway leaves open."""

import logging
from collections.abc import Awaitable, Callable, Mapping

import anyio

from gateway.core.errors import DatabaseUnavailable
from gateway.core.events import Usage
from gateway.core.ports import SessionStore

logger = logging.getLogger(__name__)

NOTE_EVERY_S = 2.0


class UsageNotes:
    """Notes what changed since the last time, in one transaction; a database that is away misses
    it, and the next note has it all."""

    def __init__(
        self,
        store: SessionStore,
        used: Callable[[], Mapping[str, Usage]],
        *,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        """`used` tells the usage of every running stream by its id."""
        self._store = store
        self._used = used
        self._sleep = sleep
        self._noted: Mapping[str, Usage] = {}

    async def run(self) -> None:
        """Note for ever; end it by cancelling."""
        while True:
            await self._sleep(NOTE_EVERY_S)
            try:
                await self.note()
            except DatabaseUnavailable as error:
                logger.debug("what streams used is not noted: %s", error.message)
            except Exception:
                logger.exception("what streams used is not noted")

    async def note(self) -> None:
        """Write what changed; raises DatabaseUnavailable."""
        used = self._used()
        changed = {name: usage for name, usage in used.items() if self._noted.get(name) != usage}
        if changed:
            await self._store.note_usage(changed)
        self._noted = used
