"""The events of one stream in their order: those to be read, and the last that were read.

Plain data: who may read, and who waits for whom, is for `live`.
"""

from collections import deque
from collections.abc import Sequence
from sys import getsizeof

from gateway.core.errors import InvalidRequest, StreamGap
from gateway.core.events import Event, ReasoningDelta, TextDelta, ToolCallDelta, count_tokens

EVENT_BYTES = 200
"""What an event takes in memory beside its text, roughly; a log probability takes about as much."""

_Held = tuple[Event, int, int]
"""An event, what it weighs and the tokens that it tells."""


class ReplayBuffer:
    """Numbers events from 1, and keeps what was read as long as all fits into its bounds.

    What was not read yet is never dropped: whoever appends asks `has_room` first. With `keeps`
    false, what was read is gone.
    """

    __slots__ = (
        "_max_bytes",
        "_max_events",
        "_read",
        "_unread",
        "position",
        "size_bytes",
        "unread_bytes",
        "unread_tokens",
    )

    def __init__(self, *, max_events: int, max_bytes: int, keeps: bool) -> None:
        self._max_events = max_events
        self._max_bytes = max_bytes
        # An empty deque takes more memory than all else here, and most streams keep nothing.
        self._read: deque[_Held] | None = deque() if keeps else None
        self._unread: list[_Held] = []
        self.unread_bytes = 0
        self.unread_tokens = 0
        self.size_bytes = 0
        self.position = 0
        """The number of the last event that was read."""

    @property
    def last_id(self) -> int:
        """The number of the last event; 0 when there is none."""
        return self.position + len(self._unread)

    def has_room(self, most_unread: int) -> bool:
        return len(self._unread) < most_unread and self.unread_bytes < self._max_bytes

    def append(self, event: Event) -> None:
        size, tokens = weigh(event), count_tokens(event)
        self._unread.append((event, size, tokens))
        self.unread_bytes += size
        self.unread_tokens += tokens
        self.size_bytes += size
        if self._read:
            self._trim()

    def append_read(self, events: Sequence[Event], sizes: Sequence[int]) -> None:
        """Number `events`, of which each weighs one of `sizes`, that are read as they come, because
        nothing before them is unread."""
        self.position += len(events)
        if self._read is not None:
            self._read.extend(zip(events, sizes, map(count_tokens, events), strict=True))
            self.size_bytes += sum(sizes)
            self._trim()

    def take(self, most: int) -> list[Event]:
        """Return the next events, `most` at most; they count as read."""
        if not self._unread:
            return []
        taken = self._unread[:most]
        self._pass(taken)
        return [event for event, _, _ in taken]

    def seek(self, after: int) -> None:
        """Let the next event to be read be the one after number `after`.

        Raises StreamGap when it is no longer kept and InvalidRequest when there is no such number
        yet; then nothing has changed.
        """
        if after > self.last_id:
            raise InvalidRequest(f"The stream has {self.last_id} events so far, not {after}.")
        if after < (oldest := self.position - len(self._read or ())):
            raise StreamGap(f"Events {after + 1} to {oldest} of the stream are no longer kept.")
        if after < self.position:
            self._step_back(self.position - after)
        elif after > self.position:
            self._pass(self._unread[: after - self.position])

    def _pass(self, held: list[_Held]) -> None:
        """Let the first of the unread, which `held` are, count as read."""
        del self._unread[: len(held)]
        self.position += len(held)
        size = sum([size for _, size, _ in held])
        self.unread_bytes -= size
        self.unread_tokens -= sum([tokens for _, _, tokens in held])
        if self._read is None:
            self.size_bytes -= size
        else:
            self._read += held
            self._trim()

    def _step_back(self, count: int) -> None:
        assert self._read is not None, "there is a gap where nothing is kept"
        for _ in range(count):
            held = self._read.pop()
            self.unread_bytes += held[1]
            self.unread_tokens += held[2]
            self._unread.insert(0, held)
            self.position -= 1

    def _trim(self) -> None:
        while self._read and (
            len(self._read) + len(self._unread) > self._max_events
            or self.size_bytes > self._max_bytes
        ):
            self.size_bytes -= self._read.popleft()[1]


def weigh(event: Event) -> int:
    """Return about how many bytes `event` takes in memory."""
    if type(event) is TextDelta and not event.logprobs:  # as nearly always
        return getsizeof(event.text) + EVENT_BYTES
    match event:
        case TextDelta() | ReasoningDelta():
            size = getsizeof(event.text)
        case ToolCallDelta():
            size = getsizeof(event.call.arguments)
        case _:
            return EVENT_BYTES
    described = sum(1 + len(each.top) for each in event.logprobs)
    return size + EVENT_BYTES * (1 + described)
