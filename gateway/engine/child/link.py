"""Messages over a socket between two of our processes: batched writes, bounded buffers."""

from collections.abc import Callable
from typing import Generic, TypeVar

import anyio
from anyio.abc import ByteStream

from gateway.engine.child.wire import FrameSplitter, FromChild, ToChild, encode_frame

READ_BYTES = 2**18
UNSENT_BYTES = 2**20
"""Above it a new request waits; what is said of one that runs is small and never waits."""

Incoming = TypeVar("Incoming", ToChild, FromChild)


class Link(Generic[Incoming]):
    """One end. `run_writer` must run beside whoever posts; one task at a time may receive."""

    def __init__(self, stream: ByteStream, decode: Callable[[bytes], Incoming]) -> None:
        self._stream = stream
        self._decode: Callable[[bytes], Incoming] = decode
        self._splitter = FrameSplitter()
        self._unsent = bytearray()
        self._is_writing = False
        self._is_broken = False
        self._posted = anyio.Event()
        self._written = anyio.Event()

    @property
    def is_idle(self) -> bool:
        """Tell whether nothing is left to be written."""
        return self._is_broken or not (self._unsent or self._is_writing)

    def post(self, message: ToChild | FromChild) -> None:
        """Have a message written, together with what else is posted until the next write.

        Nothing happens where the other side is gone: who receives learns it.
        """
        frame = encode_frame(message)
        if not self._is_broken:
            self._unsent += frame
            self._posted.set()

    async def wait_for_room(self) -> None:
        """Wait until the other side has read enough for another request."""
        while len(self._unsent) > UNSENT_BYTES and not self._is_broken:
            await self._written.wait()

    async def flush(self) -> None:
        """Wait until all that was posted is written."""
        while not self.is_idle:
            await self._written.wait()

    async def run_writer(self) -> None:
        """Write what is posted, until the other side is gone."""
        try:
            while True:
                await self._posted.wait()
                data, self._unsent = bytes(self._unsent), bytearray()
                self._posted = anyio.Event()
                self._is_writing = True
                await self._stream.send(data)
                self._is_writing = False
                self._tell_written()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            self._is_broken = True
            self._unsent.clear()
            self._tell_written()

    async def receive(self) -> list[Incoming]:
        """Return the messages that are there, waiting for the first; none: the other side ended.

        Raises WireError for what cannot be read.
        """
        messages: list[Incoming] = []
        while not messages:
            try:
                data = await self._stream.receive(READ_BYTES)
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                break
            messages = [self._decode(payload) for payload in self._splitter.push(data)]
        return messages

    def _tell_written(self) -> None:
        self._written.set()
        self._written = anyio.Event()
