"""How an answer that broke goes on with another model, or with the same one anew. Pure.

What was said becomes the beginning of the answer that the next one is asked for: as its own tokens
where the very model said them and tells them, else as text.
"""

from collections.abc import Iterator, Sequence

from msgspec.structs import replace

from gateway.core.errors import (
    EngineFailed,
    GatewayError,
    InvalidRequest,
    ProviderError,
    ProviderRejected,
)
from gateway.core.events import (
    Delta,
    Event,
    Finished,
    ReasoningDelta,
    Started,
    Switched,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from gateway.core.joint import Joint
from gateway.core.messages import GenerateRequest, Said
from gateway.core.names import ModelRef
from gateway.core.retry import helps_elsewhere
from gateway.core.virtual import VirtualModel


def count_continuations(request: GenerateRequest, rule: VirtualModel | None, most: int) -> int:
    """Return how often the answer may go on after a failure.

    The caller's word counts before that of the `rule` of the name that was used; `most` is what the
    operator allows, and what holds where the rule gives no number.
    """
    wanted = request.continue_on_failure
    if wanted is None:
        wanted = rule is not None and rule.continue_on_failure
    if not wanted:
        return 0
    own = None if rule is None else rule.max_continuations
    return most if own is None else min(own, most)


def may_continue(error: GatewayError) -> bool:
    """Tell whether another model might go on where one broke off with this error.

    Not where the request itself was at fault: what was said may come of a prompt that was cut.
    """
    return helps_elsewhere(error) and not isinstance(error, InvalidRequest)


def may_recover(error: GatewayError) -> bool:
    """Tell whether the very model that broke off may go on if it is asked again."""
    is_failure = isinstance(error, ProviderError | EngineFailed)
    return is_failure and not isinstance(error, ProviderRejected)


def can_continue(request: GenerateRequest, said: Said, ref: ModelRef, *, takes_text: bool) -> bool:
    """Tell whether the model `ref` can go on with an answer.

    The model that said it goes on from its own tokens, whatever they mean. Another one goes on from
    text alone (`takes_text`: its provider can): half a thought is no text, a call that was made is
    made, and a grammar cannot begin in the middle. Of what nobody said anything anybody can begin.
    """
    if said.is_empty or (said.ids and said.source == ref):
        return True
    is_bound = request.response_format is not None and request.response_format.type != "text"
    is_forced = request.tool_choice not in (None, "auto", "none")
    return takes_text and bool(said.text) and not (said.calls or is_bound or is_forced)


class Relay:
    """One answer by one model after the other: is told its parts, and tells the whole.

    `begin` a part with each model that is asked, and let it `tell` what that one says. A part that
    breaks after it began is taken note of by `break_off`.
    """

    def __init__(self, request: GenerateRequest, most: int) -> None:
        """`most` is how often the answer may go on."""
        self.left = most
        self.request = replace(request, tells_ids=True)
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._ids: list[int] = []
        self._calls = 0
        self._tokens = 0
        self._source: ModelRef | None = None
        self._is_of_one = True
        self._spent = Usage()
        self._reason = ""
        self._part: Started | None = None
        self._part_tokens = 0
        self._joint: Joint | None = None

    @property
    def is_full(self) -> bool:
        """Whether the answer has all the tokens that it may have."""
        most = self.request.options.max_tokens
        return most is not None and self._tokens >= most

    @property
    def said(self) -> Said:
        """What all parts said so far."""
        are_known = self._is_of_one and len(self._ids) == self._tokens
        return Said(
            text="".join(self._texts),
            reasoning="".join(self._thoughts),
            calls=self._calls,
            tokens=self._tokens,
            source=self._source,
            ids=tuple(self._ids) if are_known else (),
        )

    def begin(self) -> GenerateRequest:
        """Begin a part; return what to ask for."""
        self._part, self._part_tokens = None, 0
        if self._source is None:
            return self.request
        said = self.said
        self._joint = Joint(said.text, self.request.options.stop)
        return self.request if said.is_empty else replace(self.request, said=said)

    def break_off(self, reason: str) -> None:
        """Take note that the part broke; `reason` is the code of its error."""
        self._spend(self._part_usage)
        self._part, self._reason = None, reason
        self.left -= 1

    def end(self) -> Finished:
        """Return the end of an answer that is full."""
        return Finished("length", self._spent)

    def tell(self, event: Event) -> Iterator[Event]:
        """Yield what the readers are told when a part says `event`; nothing follows a Finished."""
        match event:
            case Started():
                yield self._start(event)
            case TextDelta() if self._joint is not None:
                yield from self._tell_deltas(self._joint.push(event))
                if self._joint.is_over:
                    self._part_tokens += self._joint.held_tokens
                    yield self._finish(Finished("stop", self._part_usage))
            case TextDelta() | ReasoningDelta() | ToolCallDelta():
                yield from self._tell_deltas([*self._flush(), event])
            case Finished():
                yield from self._tell_deltas(self._flush())
                yield self._finish(event)
            case _:
                yield event

    @property
    def _part_usage(self) -> Usage:
        """What the part used so far; a prompt that is told at the end alone is not known before."""
        prompt_tokens = self._part.prompt_tokens if self._part else None
        return Usage(prompt_tokens or 0, self._part_tokens)

    def _start(self, event: Started) -> Event:
        before, self._source, self._part = self._source, event.ref, event
        if before is None:
            return event
        if self._tokens:
            self._is_of_one = self._is_of_one and before == event.ref
        return Switched(before, event.ref, self._reason, event.prompt_tokens)

    def _tell_deltas(self, deltas: Sequence[Delta]) -> Sequence[Delta]:
        for delta in deltas:
            match delta:
                case TextDelta():
                    self._texts.append(delta.text)
                case ReasoningDelta():
                    self._thoughts.append(delta.text)
                case ToolCallDelta():
                    self._calls += 1
            self._tokens += delta.tokens
            self._part_tokens += delta.tokens
            self._ids += delta.ids
        return deltas

    def _flush(self) -> Sequence[TextDelta]:
        return () if self._joint is None else self._joint.flush()

    def _finish(self, event: Finished) -> Finished:
        self._spend(event.usage)
        return replace(event, usage=self._spent)

    def _spend(self, usage: Usage) -> None:
        self._spent = Usage(
            self._spent.prompt_tokens + usage.prompt_tokens,
            self._spent.completion_tokens + usage.completion_tokens,
        )
