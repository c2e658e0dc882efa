"""Streams that ended and may still be read: by a client that lost the end on the way."""

from collections.abc import Callable

from gateway.services.live import LiveStream

STREAM_BYTES = 4096
"""What a stream takes in memory beside its events, roughly."""


class EndedStreams:
    """Keeps each stream for its time, and all of them within `max_bytes`: the oldest go first."""

    def __init__(self, *, max_bytes: int, clock: Callable[[], float]) -> None:
        self._max_bytes = max_bytes
        self._clock = clock
        self._kept: dict[str, tuple[LiveStream, float, int]] = {}
        self._bytes = 0

    def keep(self, stream: LiveStream, keep_s: float) -> None:
        size = STREAM_BYTES + stream.size_bytes
        self._kept[stream.id] = stream, self._clock() + keep_s, size
        self._bytes += size
        self._purge()

    def find(self, stream_id: str) -> LiveStream | None:
        self._purge()
        stream, until, _ = self._kept.get(stream_id, (None, 0.0, 0))
        return stream if self._clock() < until else None

    def drop(self, caller: str) -> None:
        """Let go of all that `caller` opened."""
        for stream_id, (stream, _, size) in list(self._kept.items()):
            if stream.caller == caller:
                del self._kept[stream_id]
                self._bytes -= size

    def _purge(self) -> None:
        """Let the oldest go as long as their time is over or all are too large. One that is kept
        for longer may hide younger ones that are not: they still count, and `find` is exact."""
        now = self._clock()
        while self._kept:
            stream, until, size = next(iter(self._kept.values()))
            if now < until and self._bytes <= self._max_bytes:
                return
            del self._kept[stream.id]
            self._bytes -= size
