"""What is written of streams, whichever way it goes."""

from collections.abc import Callable
from typing import Any

import pytest

from gateway.http.express.exchange import StreamExchange
from gateway.http.sse_wire import AsgiWire


def watch_frames(monkeypatch: pytest.MonkeyPatch, told: Callable[[bytes], None]) -> None:
    """Have `told` given all frames once they were written."""
    for wire in (AsgiWire, StreamExchange):
        write = wire.write

        def note(self: Any, frames: bytes, write: Any = write) -> None:
            write(self, frames)
            told(frames)

        monkeypatch.setattr(wire, "write", note)
