"""`sessions`: the records of the newest streams."""

from datetime import datetime

import strawberry

from gateway.core import events
from gateway.core import sessions as core
from gateway.core.errors import InvalidRequest
from schema.types import StreamEnd, to_datetime

MAX_FIRST = 200


@strawberry.type(description="Tokens, as the model counted them.")
class Usage:
    prompt_tokens: int = strawberry.field(description="Tokens of the prompt.")
    completion_tokens: int = strawberry.field(description="Tokens of the answer.")

    @classmethod
    def of(cls, usage: events.Usage) -> "Usage":
        return cls(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
        )


@strawberry.type(description="Where the time of a stream went, in milliseconds.")
class Timings:
    queue_ms: float = strawberry.field(description="Waiting for a turn.")
    load_ms: float = strawberry.field(description="Waiting for the model to be loaded.")
    ttft_ms: float | None = strawberry.field(
        description="From the request to the first token; null when there was none."
    )
    total_ms: float = strawberry.field(description="From the request to the end.")

    @classmethod
    def of(cls, timings: events.Timings) -> "Timings":
        return cls(
            queue_ms=timings.queue_ms,
            load_ms=timings.load_ms,
            ttft_ms=timings.ttft_ms,
            total_ms=timings.total_ms,
        )


@strawberry.type(description="The record of one stream; what only its end tells is null at first.")
class Session:
    id: strawberry.ID = strawberry.field(description="Id of the stream.")
    request_id: str = strawberry.field(description="Id of the request, as X-Request-Id told it.")
    requested_model: str = strawberry.field(description="The model as the caller wrote it.")
    provider: str | None = strawberry.field(description="The provider it was routed to.")
    model: str | None = strawberry.field(description="The model's name at that provider.")
    end: StreamEnd | None = strawberry.field(description="Why it ended; null while it runs.")
    opened_at: datetime = strawberry.field(description="When it was accepted.")
    closed_at: datetime | None = strawberry.field(description="When it ended.")
    usage: Usage | None = strawberry.field(description="What it used.")
    timings: Timings | None = strawberry.field(description="Where its time went.")
    error_code: str | None = strawberry.field(description="What went wrong, for programs.")
    face: str = strawberry.field(description="The API it came in by, such as native or openai.")
    served_by: list[str] = strawberry.field(
        description="The models that made an answer which went on after a failure, in their order."
    )
    switched: int = strawberry.field(description="How often it went on after a failure.")

    @classmethod
    def of(cls, session: core.Session) -> "Session":
        opened, closed = session.opened, session.closed
        served_by = closed.served_by if closed else ()
        return cls(
            id=strawberry.ID(opened.id),
            request_id=opened.request_id,
            requested_model=opened.requested_model,
            provider=session.opened.provider,
            model=session.opened.model,
            end=StreamEnd[closed.end.name] if closed else None,
            opened_at=to_datetime(opened.opened_at),
            closed_at=to_datetime(closed.closed_at) if closed else None,
            usage=Usage.of(closed.usage) if closed else None,
            timings=Timings.of(closed.timings) if closed else None,
            error_code=closed.error_code if closed else None,
            face=opened.face,
            served_by=list(served_by),
            switched=max(0, len(served_by) - 1),
        )


def require_first(first: int) -> int:
    """Return how many sessions to read; raise InvalidRequest when that is out of range."""
    if not 0 <= first <= MAX_FIRST:
        raise InvalidRequest(f"'first' must be from 0 to {MAX_FIRST}.", param="first")
    return first
