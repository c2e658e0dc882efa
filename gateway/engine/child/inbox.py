"""What a child has said to one reader and he has not read yet: bounded by credit."""

from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import anyio

from gateway.core.errors import GatewayError
from gateway.engine.child.wire import WINDOW, WireError

Said = TypeVar("Said")


class Inbox(Generic[Said]):
    """One reader's, of at most WINDOW things, all of one kind. Touched on the event loop only."""

    def __init__(self, kind: Any, grant: Callable[[int], None]) -> None:
        """`kind` is what may be said to this reader, as isinstance takes it; `grant` lets the child
        say so many things more."""
        self._kind = kind
        self._grant = grant
        self._unread: deque[Said] = deque()
        self._taken = 0
        self._error: GatewayError | None = None
        self._arrived = anyio.Event()
        self.released = anyio.Event()

    @property
    def unread(self) -> int:
        return len(self._unread)

    def deliver(self, said: Any) -> None:
        """Add a thing; raises WireError for one of another kind, or when more come than may."""
        if not isinstance(said, self._kind):
            raise WireError("an answer to another question than was asked")
        if len(self._unread) >= WINDOW:
            raise WireError("more events than the reader has room for")
        self._unread.append(said)
        self._arrived.set()

    def release(self, error: GatewayError | None) -> None:
        """Nothing more will come."""
        self._error = error
        self.released.set()
        self._arrived.set()

    async def take(self) -> list[Said]:
        """Return all that is there, waiting for the first; nothing: nothing is left.

        Raises the error that ended the answer, after what came before it.
        """
        while not self._unread:
            if self._error is not None:
                raise self._error
            if self.released.is_set():
                return []
            self._arrived = anyio.Event()
            await self._arrived.wait()
        said = list(self._unread)
        self._unread.clear()
        self._taken += len(said)
        if self._taken >= WINDOW // 2 and not self.released.is_set():
            self._grant(self._taken)
            self._taken = 0
        return said
