"""Counts what a stream says as it says it: usage and timings are true for cut streams, too."""

from collections.abc import Sequence

from gateway.core.events import (
    Event,
    Finished,
    ReasoningDelta,
    Routed,
    Started,
    Switched,
    TextDelta,
    Timings,
    ToolCallDelta,
    Usage,
)
from gateway.core.gaps import Gaps
from gateway.core.names import ModelRef


class Tally:
    """What is known of one stream so far. Clock values are seconds of one monotonic clock."""

    __slots__ = (
        "_ended_at",
        "_first_at",
        "_last_at",
        "_opened_at",
        "_started",
        "_switches",
        "finished",
        "gaps",
        "ref",
        "said_tokens",
    )

    def __init__(self, opened_at: float) -> None:
        self.ref: ModelRef | None = None
        self.finished: Finished | None = None
        self.said_tokens = 0
        self.gaps = Gaps()
        self._opened_at = opened_at
        self._first_at: float | None = None
        self._last_at = opened_at
        self._ended_at: float | None = None
        self._started: Started | None = None
        self._switches: tuple[Switched, ...] = ()

    def observe(self, events: Sequence[Event], at: float) -> None:
        """Count events that came together."""
        pieces = 0
        for event in events:
            if type(event) is TextDelta or isinstance(event, (ReasoningDelta, ToolCallDelta)):
                self.said_tokens += event.tokens
                pieces += 1
            else:
                self._note(event, at)
        if not pieces:
            return
        if self._first_at is None:
            self._first_at = at
        else:
            self.gaps.add(at - self._last_at)
        self._last_at = at
        if pieces > 1:
            self.gaps.add_none(pieces - 1)

    def _note(self, event: Event, at: float) -> None:
        match event:
            case Started():
                self._started = event
                self.ref = event.ref
            case Routed():
                self.ref = event.ref
            case Switched():
                self.ref = event.target
                self._switches += (event,)
            case Finished():
                self.finished = event
                self._ended_at = at

    def close(self, at: float) -> None:
        """Nothing follows, whether the stream finished or not."""
        if self._ended_at is None:
            self._ended_at = at

    @property
    def usage(self) -> Usage:
        """The model's own count once it finished, else what was seen go by."""
        if self.finished is not None:
            return self.finished.usage
        begun = [self._started, *self._switches]
        prompt_tokens = sum((each.prompt_tokens or 0) for each in begun if each is not None)
        return Usage(prompt_tokens, self.said_tokens)

    @property
    def served_by(self) -> tuple[str, ...]:
        """The models that made the answer, in their order, if there was more than one part."""
        if not self._switches:
            return ()
        return (str(self._switches[0].source), *(str(each.target) for each in self._switches))

    def timings(self, at: float) -> Timings:
        """Return the timings up to the stream's end, or up to `at` while it runs."""
        first = self._first_at
        ended_at = at if self._ended_at is None else self._ended_at
        return Timings(
            queue_ms=self._started.queue_ms if self._started else 0.0,
            load_ms=self._started.load_ms if self._started else 0.0,
            ttft_ms=None if first is None else (first - self._opened_at) * 1000,
            total_ms=(ended_at - self._opened_at) * 1000,
        )
