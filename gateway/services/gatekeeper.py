"""Says who sent a request and whether he may go on: keys are checked against memory.

A key that is made or revoked anywhere counts everywhere within a second (`stamped`). Owns who is
inside with which key; makes and stores no keys.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager

import anyio
from anyio.abc import TaskGroup

from gateway.core.errors import DatabaseUnavailable, KeyRevoked, Unauthenticated
from gateway.core.keys import Caller, Peppers, StoredKey, read_key_id
from gateway.core.ports import KeyStore
from gateway.core.rate import Allowance, Bucket, spend
from gateway.services.stamped import Stamped
from gateway.services.wrong_keys import WrongKeys

logger = logging.getLogger(__name__)

LEAVE_S = 0.5
"""How long whoever is inside with a revoked key may take to be told, before he is cut."""

_REVOKED = "The key was revoked."

Cut = Callable[[], None]


class Gatekeeper(Stamped[StoredKey]):
    """Knows every key and who uses it now. All of it happens on the event loop."""

    def __init__(
        self,
        store: KeyStore,
        peppers: Peppers,
        task_group: TaskGroup,
        *,
        end_streams: Callable[[str, KeyRevoked], None],
        wrong_keys: WrongKeys,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        """`end_streams` is told the id of each key that is revoked, and why its streams end."""
        super().__init__(store, "keys", sleep=sleep)
        self._peppers = peppers
        self._tasks = task_group
        self._end_streams = end_streams
        self._wrong_keys = wrong_keys
        self._clock = clock
        self._keys: Mapping[str, StoredKey] = {}
        self._inside: defaultdict[str, dict[_Visit, None]] = defaultdict(dict)
        self._buckets: dict[str, Bucket] = {}
        self.version = 0
        """Rises whenever the keys have changed."""

    @property
    def needs_keys(self) -> bool:
        """Whether a key was ever made: revoking the last one does not open the gateway.

        Until the keys were read for the first time there may be some.
        """
        return not self.was_read or bool(self._keys)

    def authenticate(self, text: str, address: str) -> Caller:
        """Return whose key `text` is, which came from `address`.

        Raises Unauthenticated, or RateLimited in its place where many wrong ones came from there,
        KeyRevoked, and DatabaseUnavailable for one that is not known while the database cannot be
        asked.
        """
        stored = self._keys.get(read_key_id(text))
        is_right = self._peppers.recognise(stored, text)
        if stored is None and not self.healthy:
            raise DatabaseUnavailable("The key is not known here, and the database is away.")
        if stored is None or not is_right:
            # Only now: whoever guesses cannot lock out who knows, and the check costs little.
            self._wrong_keys.count(address)
            raise Unauthenticated("The key is wrong.")
        if stored.key.revoked_at is not None:
            raise KeyRevoked(_REVOKED)
        return stored.key.caller()

    def count_request(self, caller: Caller) -> Allowance | None:
        """Take a request out of the caller's minute and say what is left; None without a limit."""
        if caller.requests_per_minute is None:
            return None
        bucket = self._buckets.get(caller.id)
        self._buckets[caller.id], allowance = spend(
            bucket, caller.requests_per_minute, self._clock()
        )
        return allowance

    def admitted(self, caller: Caller, cut: Cut) -> AbstractContextManager[None]:
        """Have `cut` called if the caller's key is revoked meanwhile."""
        return _Visit(self._inside, caller.id, cut)

    def _take(self, keys: Sequence[StoredKey]) -> None:
        before, self._keys = self._keys, {stored.key.id: stored for stored in keys}
        self.version += 1
        strange = [s.key.id for s in keys if s.pepper not in self._peppers and _lives(s)]
        if strange:
            logger.warning("keys of a pepper that is not known here: %s", ", ".join(strange))
        for key_id, stored in before.items():
            now = self._keys.get(key_id)
            if _lives(stored) and (now is None or not _lives(now)):
                self._expel(key_id)

    def _expel(self, key_id: str) -> None:
        """End what runs with a key: streams are told at once, what is left then is cut."""
        logger.info("key %s was revoked", key_id)
        self._buckets.pop(key_id, None)
        self._end_streams(key_id, KeyRevoked(_REVOKED))
        self._tasks.start_soon(self._cut, key_id, name=f"key {key_id} leaves")

    async def _cut(self, key_id: str) -> None:
        await self._sleep(LEAVE_S)
        # Once more: a request that was let in before may have begun one meanwhile.
        self._end_streams(key_id, KeyRevoked(_REVOKED))
        for visit in list(self._inside.get(key_id, ())):
            visit.cut()


class _Visit(AbstractContextManager[None]):
    """Somebody is inside with a key."""

    __slots__ = ("_inside", "_key_id", "cut")

    def __init__(
        self, inside: defaultdict[str, dict["_Visit", None]], key_id: str, cut: Cut
    ) -> None:
        self._inside = inside
        self._key_id = key_id
        self.cut = cut

    def __enter__(self) -> None:
        self._inside[self._key_id][self] = None

    def __exit__(self, *_: object) -> None:
        visits = self._inside[self._key_id]
        del visits[self]
        if not visits:
            del self._inside[self._key_id]


def _lives(stored: StoredKey) -> bool:
    return stored.key.revoked_at is None
