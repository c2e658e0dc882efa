"""What a stream says, and its grammar.

`(Routed? Waiting*)+ Started Delta* ((Routed? Waiting*)+ Switched Delta*)* Finished`; Routed is the
router's, and so is Switched.

Exactly one `Finished` ends a stream, or an exception does: errors are raised, never events.

Each token is an event: they have no cycles, and the garbage collector need not count them.
"""

from collections.abc import Sequence
from typing import Literal

import msgspec

from gateway.core.errors import StreamCancelled
from gateway.core.messages import ToolCall
from gateway.core.names import ModelRef

Stage = Literal["queued", "downloading", "loading", "prefill"]
FinishReason = Literal["stop", "length", "tool_calls", "cancelled", "error"]


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Tokens, as the model counted them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class Timings(msgspec.Struct, frozen=True):
    """Milliseconds since the request was accepted, and the parts spent waiting."""

    queue_ms: float = 0.0
    load_ms: float = 0.0
    ttft_ms: float | None = None
    total_ms: float = 0.0


class Routed(msgspec.Struct, frozen=True, tag="routed", gc=False):
    """The router's choice, before the provider is asked: records know it if all else fails.

    Another one follows when the choice failed before it said anything; `after` is the code of its
    error then.
    """

    ref: ModelRef
    after: str | None = None


class Waiting(msgspec.Struct, frozen=True, tag="waiting", gc=False):
    """Nothing to read yet: `position` in the queue, `fraction` of the stage, `eta_s` left."""

    stage: Stage
    position: int | None = None
    fraction: float | None = None
    eta_s: float | None = None


class Started(msgspec.Struct, frozen=True, tag="started", gc=False):
    """The model accepted the prompt. `prompt_tokens` is None where only the end tells it."""

    ref: ModelRef
    prompt_tokens: int | None = None
    queue_ms: float = 0.0
    load_ms: float = 0.0


class TokenLogprob(msgspec.Struct, frozen=True):
    """A token and the natural logarithm of its probability.

    `raw` are its own bytes, which may be part of a character; `token` is their text, as far as
    they are one. `top` holds the likeliest tokens of the step, likeliest first, without `top`.
    """

    token: str
    raw: bytes
    logprob: float
    top: tuple["TokenLogprob", ...] = ()


class TextDelta(msgspec.Struct, frozen=True, tag="text", gc=False):
    """More of the answer; `tokens` is how many tokens it took (0 when held back text is let go).

    `logprobs` holds one entry for each of them where they were asked for, and so does `ids`, in the
    vocabulary of the model, where the provider knows them.
    """

    text: str
    tokens: int = 1
    logprobs: tuple[TokenLogprob, ...] = ()
    ids: tuple[int, ...] = ()


class ReasoningDelta(msgspec.Struct, frozen=True, tag="reasoning", gc=False):
    text: str
    tokens: int = 1
    logprobs: tuple[TokenLogprob, ...] = ()
    ids: tuple[int, ...] = ()


class ToolCallDelta(msgspec.Struct, frozen=True, tag="tool_call", gc=False):
    """One whole tool call; `index` counts the calls of this answer from 0."""

    index: int
    call: ToolCall
    tokens: int = 1
    logprobs: tuple[TokenLogprob, ...] = ()
    ids: tuple[int, ...] = ()


class Switched(msgspec.Struct, frozen=True, tag="switched", gc=False):
    """The stream goes on with another model after a failure, whose code is `reason`.

    `prompt_tokens` are what the target read: the prompt and what was said; None as in Started.
    """

    source: ModelRef
    target: ModelRef
    reason: str
    prompt_tokens: int | None = None


class Finished(msgspec.Struct, frozen=True, tag="finished", gc=False):
    """The end. `truncated`: the provider cut the prompt to what the model has room for."""

    reason: FinishReason
    usage: Usage
    truncated: bool = False


Delta = TextDelta | ReasoningDelta | ToolCallDelta
Event = (
    Routed | Waiting | Started | TextDelta | ReasoningDelta | ToolCallDelta | Switched | Finished
)


def count_tokens(event: Event) -> int:
    """Return how many tokens of the answer `event` tells."""
    match event:
        case TextDelta() | ReasoningDelta() | ToolCallDelta():
            return event.tokens
        case _:
            return 0


class Generation(msgspec.Struct, frozen=True):
    """A whole answer: a stream, collected. `logprobs` are those of the tokens of `text`, `ref` is
    the model that said its end."""

    ref: ModelRef
    text: str
    reasoning: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: FinishReason
    usage: Usage
    logprobs: tuple[TokenLogprob, ...] = ()
    truncated: bool = False
    switches: tuple[Switched, ...] = ()


class Collector:
    """Makes one answer of the events of a stream."""

    __slots__ = ("_logprobs", "_others", "_texts")

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._others: list[Event] = []

    def add_all(self, events: Sequence[Event]) -> None:
        for event in events:
            if type(event) is TextDelta:  # nearly all are
                self._texts.append(event.text)
                if event.logprobs:
                    self._logprobs += event.logprobs
            else:
                self._others.append(event)

    def whole(self) -> Generation:
        """Return the answer; raises StreamCancelled for one that was cancelled, or that has no
        end: somebody else did that."""
        ref: ModelRef | None = None
        finished: Finished | None = None
        reasoning: list[str] = []
        calls: list[ToolCall] = []
        switches: list[Switched] = []
        for event in self._others:
            match event:
                case Started():
                    ref = event.ref
                case Finished():
                    finished = event
                case ReasoningDelta():
                    reasoning.append(event.text)
                case ToolCallDelta():
                    calls.append(event.call)
                case Switched():
                    ref = event.target
                    switches.append(event)
        if finished is None or finished.reason == "cancelled":
            raise StreamCancelled("The stream was cancelled before its answer was complete.")
        assert ref is not None, "a stream broke its grammar: an end and no start"
        return Generation(
            ref=ref,
            text="".join(self._texts),
            reasoning="".join(reasoning),
            tool_calls=tuple(calls),
            finish_reason=finished.reason,
            usage=finished.usage,
            logprobs=tuple(self._logprobs),
            truncated=finished.truncated,
            switches=tuple(switches),
        )
