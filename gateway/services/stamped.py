"""What a table holds, kept in memory: it follows the database by a look at a stamp.

So what is changed anywhere holds everywhere within a second. While the database is away, what is
known holds on.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, Protocol, TypeVar

import anyio

from gateway.core.errors import DatabaseUnavailable

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 0.5

Record = TypeVar("Record")
Record_co = TypeVar("Record_co", covariant=True)


class StampedStore(Protocol[Record_co]):
    """A table with a stamp; both methods raise DatabaseUnavailable."""

    async def stamp(self) -> object:
        """Return what differs after every change."""
        ...

    async def all(self) -> Sequence[Record_co]: ...


class Stamped(Generic[Record]):
    """A service that knows a whole table; it says in `_take` what it makes of it."""

    def __init__(
        self,
        store: StampedStore[Record],
        kind: str,
        *,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        """`kind` is what the records are, in a sentence."""
        self._followed = store
        self._kind = kind
        self._sleep = sleep
        self._stamp: object = None
        self._looking = anyio.Lock()
        self.healthy = True
        """Whether the last look at the database succeeded."""

    @property
    def was_read(self) -> bool:
        """Whether the table was ever read."""
        return self._stamp is not None

    async def load(self) -> None:
        """Read the table if it changed; raises DatabaseUnavailable."""
        async with self._looking:
            stamp = await self._followed.stamp()
            if stamp != self._stamp:
                # The stamp is the older of the two: a change between them is found next time.
                self._take(await self._followed.all())
                self._stamp = stamp

    async def look(self) -> None:
        """Do as `load`; a database that is away is noted, and tried again."""
        try:
            await self.load()
        except DatabaseUnavailable as error:
            if self.healthy:
                known = f"{self._kind} cannot be read, those that are known hold on"
                logger.warning("%s: %s", known, error)
            self.healthy = False
        else:
            self.healthy = True

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await self._sleep(LOOK_EVERY_S)
            try:
                await self.look()
            except Exception:
                self.healthy = False
                logger.exception("%s cannot be read", self._kind)

    def _take(self, records: Sequence[Record]) -> None:
        """Know these from now on, all at once."""
        raise NotImplementedError
