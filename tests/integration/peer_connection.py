"""A connection of the scripted peers."""

import asyncio
from collections.abc import Callable
from typing import Any


class PeerConnection(asyncio.StreamReaderProtocol):
    """Sets `gone` as soon as the client closes, also while nobody reads."""

    def __init__(self, accept: Callable[..., Any]) -> None:
        """`accept` is given the connection's reader and writer."""
        # Wide enough that reading never pauses: a paused transport would not see the close.
        self.stream = asyncio.StreamReader(limit=2**28)
        self.gone = asyncio.Event()
        super().__init__(self.stream, accept)

    def eof_received(self) -> bool | None:
        self.gone.set()
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone.set()
        super().connection_lost(exc)
