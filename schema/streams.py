"""`streams`, and the events of a stream as the `generate` subscription tells them."""

from collections.abc import Sequence
from datetime import datetime

import strawberry

from gateway.core import events
from gateway.services import live
from schema.sessions import Timings, Usage
from schema.types import Stage, StreamEnd, to_datetime


@strawberry.type(description="A stream that runs.")
class LiveStream:
    id: strawberry.ID = strawberry.field(description="Id of the stream, and of its record.")
    request_id: str = strawberry.field(description="Id of the request that opened it.")
    requested_model: str = strawberry.field(description="The model as the caller wrote it.")
    model: str | None = strawberry.field(description="Its full name, once it is known.")
    face: str = strawberry.field(description="The API it came in by, such as native or openai.")
    opened_at: datetime = strawberry.field(description="When it was accepted.")
    detached: bool = strawberry.field(description="Whether it goes on without a reader.")
    has_reader: bool = strawberry.field(description="Whether somebody reads it now.")
    last_event: int = strawberry.field(description="The number of its newest event, from 1.")
    usage: Usage = strawberry.field(description="What it used so far.")

    @classmethod
    def of(cls, stream: live.LiveStream) -> "LiveStream":
        opened, tally = stream.opened, stream.tally
        return cls(
            id=strawberry.ID(stream.id),
            request_id=opened.request_id,
            requested_model=opened.requested_model,
            model=None if tally.ref is None else str(tally.ref),
            face=opened.face,
            opened_at=to_datetime(opened.opened_at),
            detached=stream.is_detached,
            has_reader=stream.has_reader,
            last_event=stream.last_id,
            usage=Usage.of(stream.usage),
        )


@strawberry.interface(description="Something that a stream says.")
class StreamEvent:
    stream_id: strawberry.ID = strawberry.field(description="Id of the stream.")
    number: int = strawberry.field(description="The events of a stream are counted from 1.")


@strawberry.type(description="There is nothing to read yet.")
class WaitingEvent(StreamEvent):
    stage: Stage = strawberry.field(description="What is waited for.")
    position: int | None = strawberry.field(description="Place in the queue; 1 is next.")
    fraction: float | None = strawberry.field(description="How much of the stage is done, 0 to 1.")
    eta_seconds: float | None = strawberry.field(description="How long it will still take.")


@strawberry.type(description="The model accepted the prompt.")
class StartedEvent(StreamEvent):
    model: str = strawberry.field(description="The full name of the model that answers.")
    decision_id: strawberry.ID = strawberry.field(description="Why it is this model: decision.")


@strawberry.type(description="The model calls a tool.")
class ToolCall:
    index: int = strawberry.field(description="The calls of an answer are counted from 0.")
    id: str = strawberry.field(description="Id of the call.")
    name: str = strawberry.field(description="The tool.")
    arguments: str = strawberry.field(description="A JSON object as text.")


@strawberry.type(description="A token and the natural logarithm of its probability.")
class TokenLogprob:
    token: str = strawberry.field(description="Its text, as far as it is one.")
    bytes: list[int] = strawberry.field(description="Its own bytes.")
    logprob: float = strawberry.field(description="Logarithm of its probability.")
    top: list["TokenLogprob"] = strawberry.field(
        description="The likeliest tokens of the step, likeliest first."
    )

    @classmethod
    def of(cls, logprob: events.TokenLogprob) -> "TokenLogprob":
        top = [cls.of(other) for other in logprob.top]
        return cls(token=logprob.token, bytes=list(logprob.raw), logprob=logprob.logprob, top=top)


@strawberry.type(description="More of the answer: one of text, reasoning and toolCall.")
class DeltaEvent(StreamEvent):
    text: str | None = strawberry.field(default=None, description="More of its text.")
    reasoning: str | None = strawberry.field(default=None, description="What the model thinks.")
    tool_call: ToolCall | None = strawberry.field(default=None, description="A whole call.")
    logprobs: list[TokenLogprob] = strawberry.field(
        default_factory=list, description="Its tokens, where options.logprobs asked for them."
    )


@strawberry.type(description="The stream goes on with another model, or anew, after a failure.")
class SwitchedEvent(StreamEvent):
    source: str = strawberry.field(description="The full name of the model that failed.")
    target: str = strawberry.field(description="The full name of the model that goes on.")
    reason: str = strawberry.field(description="The code of its error.")


@strawberry.type(description="The end; nothing follows.")
class FinishedEvent(StreamEvent):
    end: StreamEnd = strawberry.field(description="Why it ended.")
    usage: Usage = strawberry.field(description="What it used.")
    timings: Timings = strawberry.field(description="Where its time went.")
    truncated: bool = strawberry.field(description="Whether the prompt was cut to fit.")


EVENT_TYPES = (WaitingEvent, StartedEvent, DeltaEvent, SwitchedEvent, FinishedEvent)
"""What implements StreamEvent; the schema finds them by no field."""


def describe_event(stream: live.LiveStream, number: int, event: events.Event) -> StreamEvent:
    """Return event `number` of `stream` as GraphQL shows it."""
    stream_id = strawberry.ID(stream.id)
    match event:
        case events.Waiting():
            return WaitingEvent(
                stream_id=stream_id,
                number=number,
                stage=Stage[event.stage.upper()],
                position=event.position,
                fraction=event.fraction,
                eta_seconds=event.eta_s,
            )
        case events.Started():
            return StartedEvent(
                stream_id=stream_id,
                number=number,
                model=str(event.ref),
                decision_id=stream_id,
            )
        case events.Switched():
            return SwitchedEvent(
                stream_id=stream_id,
                number=number,
                source=str(event.source),
                target=str(event.target),
                reason=event.reason,
            )
        case events.Finished():
            return FinishedEvent(
                stream_id=stream_id,
                number=number,
                end=StreamEnd[event.reason.upper()],
                usage=Usage.of(event.usage),
                timings=Timings.of(stream.timings),
                truncated=event.truncated,
            )
        case events.TextDelta() | events.ReasoningDelta() | events.ToolCallDelta():
            return _describe_delta(stream_id, number, event)
        case events.Routed():
            raise AssertionError("what is not shown has no number")


def _describe_delta(stream_id: strawberry.ID, number: int, event: events.Delta) -> DeltaEvent:
    delta = DeltaEvent(
        stream_id=stream_id, number=number, logprobs=_describe_logprobs(event.logprobs)
    )
    match event:
        case events.TextDelta():
            delta.text = event.text
        case events.ReasoningDelta():
            delta.reasoning = event.text
        case events.ToolCallDelta():
            call = event.call
            delta.tool_call = ToolCall(
                index=event.index, id=call.id, name=call.name, arguments=call.arguments
            )
    return delta


def _describe_logprobs(logprobs: Sequence[events.TokenLogprob]) -> list[TokenLogprob]:
    return [TokenLogprob.of(each) for each in logprobs]
