"""HubTokenService: the token that the Hub is asked with: stored by somebody, or of the settings."""

import logging
from collections.abc import Awaitable, Callable, Collection
from time import monotonic

import anyio

from gateway.core.errors import DatabaseUnavailable, HubTokenRejected, HubTokenRequired
from gateway.core.hub import (
    HubAccount,
    StoredSecret,
    TokenReport,
    TokenSource,
    require_token,
)
from gateway.core.ports import SecretStore

logger = logging.getLogger(__name__)

SECRET = "hf-token"
LOOK_AGAIN_S = 2.0
"""How old a look at the store may be: another gateway, or a command, may have changed it."""

Whoami = Callable[[str], Awaitable[HubAccount]]


async def _nothing_to_forget() -> None:
    pass


class HubTokenService:
    """A stored token wins over the settings' one. The token itself is told to `lookup`'s caller
    and to nobody else."""

    def __init__(
        self,
        store: SecretStore,
        whoami: Whoami,
        *,
        environment: str | None = None,
        changed: Callable[[], Awaitable[None]] = _nothing_to_forget,
        required: bool = False,
        recommended: Collection[str] = (),
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """`environment` is the settings' token, `changed` is called after every change; with
        `required` downloads need a token unless they are of `recommended`."""
        self._store = store
        self._whoami = whoami
        self._environment = environment
        self._changed = changed
        self._required = required
        self._recommended = frozenset(recommended)
        self._clock = clock
        self._stored: StoredSecret | None = None
        self._looked_at: float | None = None
        self._looking = anyio.Lock()

    async def lookup(self) -> str | None:
        """Return the token to use now; None is to ask anonymously.

        While the database is away the one that was last seen goes on. Raises SecretUnreadable,
        and DatabaseUnavailable where none was seen yet.
        """
        stored = await self._look()
        return self._environment if stored is None else stored.text

    async def set(self, text: str, *, validate: bool = True) -> TokenReport:
        """Store a token in the place of any other, once the Hub knows it, and say whose it is.

        Raises InvalidRequest, HubTokenRejected and whatever keeps the Hub from answering: then
        nothing is stored. Without `validate` the Hub is not asked.
        """
        token = require_token(text)
        account = await self._whoami(token) if validate else None
        await self._store.put(SECRET, token)
        await self._refresh()
        return TokenReport(
            TokenSource.STORED,
            None if self._stored is None else self._stored.updated_at,
            None if account is None else True,
            account,
        )

    async def delete(self) -> TokenReport:
        """Forget the stored token and say what is used from now on. Without one it is harmless."""
        await self._store.delete(SECRET)
        await self._refresh()
        return await self.report()

    async def report(self, *, validate: bool = False) -> TokenReport:
        """Say where the token comes from and, with `validate`, what the Hub says of it."""
        stored = await self._look()
        token = self._environment if stored is None else stored.text
        if token is None:
            return TokenReport(TokenSource.NONE)
        source = TokenSource.ENVIRONMENT if stored is None else TokenSource.STORED
        updated_at = None if stored is None else stored.updated_at
        if not validate:
            return TokenReport(source, updated_at)
        try:
            return TokenReport(source, updated_at, True, await self._whoami(token))
        except HubTokenRejected:
            return TokenReport(source, updated_at, False)

    async def require_for_download(self, repository: str) -> None:
        """Raise HubTokenRequired where the operator wants a token for this download."""
        if not self._required or repository in self._recommended:
            return
        if await self.lookup() is None:
            raise HubTokenRequired(f"'{repository}' may be downloaded only once a token is set.")

    async def _look(self) -> StoredSecret | None:
        # One look at a time: one that began before a change must not end after it.
        async with self._looking:
            now = self._clock()
            if self._looked_at is None or now - self._looked_at >= LOOK_AGAIN_S:
                try:
                    self._stored = await self._store.get(SECRET)
                except DatabaseUnavailable as error:
                    if self._looked_at is None:
                        raise
                    logger.warning("the Hub's token cannot be looked up: %s", error.message)
                self._looked_at = now
            return self._stored

    async def _refresh(self) -> None:
        async with self._looking:
            self._looked_at = None
        await self._look()
        await self._changed()
