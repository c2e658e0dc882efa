"""Makes, lists and revokes API keys. Who may pass with one is the Gatekeeper's to say."""

import time
from collections.abc import Awaitable, Callable, Sequence

from gateway.core.errors import InvalidRequest, KeyNotFound
from gateway.core.keys import (
    MAX_NAME_LENGTH,
    ApiKey,
    KeyOrder,
    KeyScope,
    Peppers,
    StoredKey,
    make_key_text,
)
from gateway.core.messages import require_clean_text
from gateway.core.ports import KeyStore

MAX_LIMIT = 10**9


async def _nobody_to_tell() -> None:
    pass


class KeyService:
    """The keys in the store; `changed` is called after every change."""

    def __init__(
        self,
        store: KeyStore,
        peppers: Peppers,
        *,
        changed: Callable[[], Awaitable[None]] = _nobody_to_tell,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._peppers = peppers
        self._changed = changed
        self._now = now

    async def create(self, order: KeyOrder) -> tuple[ApiKey, str]:
        """Return a new key, and the text that its owner sends: nobody can tell it again.

        Raises InvalidRequest and DatabaseUnavailable.
        """
        _require_sense(order)
        key_id, text = make_key_text()
        key = ApiKey(
            id=key_id,
            name=order.name,
            scopes=tuple(scope for scope in KeyScope if scope in order.scopes),
            created_at=round(self._now(), 6),
            max_streams=order.max_streams,
            requests_per_minute=order.requests_per_minute,
        )
        await self._store.add(StoredKey(key, self._peppers.digest(text), self._peppers.newest))
        await self._changed()
        return key, text

    async def revoke(self, key_id: str) -> ApiKey:
        """Return the key, revoked; again is harmless. Raises KeyNotFound, DatabaseUnavailable."""
        stored = await self._store.revoke(key_id, round(self._now(), 6))
        if stored is None:
            raise KeyNotFound("There is no key of that id.", param="id")
        await self._changed()
        return stored.key

    async def all(self) -> Sequence[ApiKey]:
        """Return every key, revoked ones too, the oldest first."""
        return [stored.key for stored in await self._store.all()]


def _require_sense(order: KeyOrder) -> None:
    require_clean_text(order.name, "name")
    if not order.name.strip() or len(order.name) > MAX_NAME_LENGTH:
        raise InvalidRequest(f"'name' has 1 to {MAX_NAME_LENGTH} characters.", param="name")
    if not order.scopes:
        raise InvalidRequest(
            "'scopes' is empty.", hint=f"There are: {', '.join(KeyScope)}.", param="scopes"
        )
    for name in ("max_streams", "requests_per_minute"):
        limit: int | None = getattr(order, name)
        if limit is not None and not 1 <= limit <= MAX_LIMIT:
            raise InvalidRequest(
                f"'{name}' is {limit}; it must be 1 to {MAX_LIMIT:,}, or left out.", param=name
            )
