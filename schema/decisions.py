"""`decision`, `decisions` and `explainRoute`: why requests went where they went."""

from datetime import UTC, datetime
from enum import Enum
from typing import Annotated

import strawberry

from gateway import telemetry
from gateway.core import decision_records as core
from schema.context import Info
from schema.generation import GenerateInput
from schema.sessions import Timings
from schema.types import to_datetime


@strawberry.enum(description="What a decision is about.")
class DecisionKind(Enum):
    STREAM = strawberry.enum_value("STREAM", description="A request to generate.")
    EMBEDDING = strawberry.enum_value("EMBEDDING", description="A request for embeddings.")
    DRY_RUN = strawberry.enum_value("DRY_RUN", description="A question, which was not run.")


@strawberry.enum(description="What became of a request.")
class DecisionOutcome(Enum):
    PLANNED = strawberry.enum_value("PLANNED", description="Nothing: it was a dry run.")
    RUNNING = strawberry.enum_value("RUNNING", description="It has not ended.")
    ANSWERED = strawberry.enum_value("ANSWERED", description="It was answered.")
    FAILED = strawberry.enum_value("FAILED", description="It failed; see error.")
    CANCELLED = strawberry.enum_value("CANCELLED", description="The client left or cancelled.")
    INTERRUPTED = strawberry.enum_value("INTERRUPTED", description="The gateway died under it.")


@strawberry.enum(description="How a candidate came to its place.")
class DecisionVerdict(Enum):
    CHOSEN = strawberry.enum_value("CHOSEN", description="It is asked first.")
    NEXT = strawberry.enum_value("NEXT", description="It is asked if those before it fail.")
    SKIPPED = strawberry.enum_value("SKIPPED", description="It is not asked.")


@strawberry.enum(description="What became of a candidate.")
class CandidateOutcome(Enum):
    ANSWERED = strawberry.enum_value("ANSWERED", description="It answered.")
    ASKED = strawberry.enum_value("ASKED", description="It was asked and did not come to an end.")
    FAILED = strawberry.enum_value("FAILED", description="It failed; see the attempts.")
    NOT_ASKED = strawberry.enum_value("NOT_ASKED", description="It was not needed.")


@strawberry.enum(description="Where a decision was read.")
class DecisionSource(Enum):
    MEMORY = strawberry.enum_value("MEMORY", description="In the gateway that made it.")
    DATABASE = strawberry.enum_value("DATABASE", description="In the database.")
    SESSION = strawberry.enum_value(
        "SESSION", description="In the record of the stream, which tells it as far as it knows."
    )


@strawberry.type(description="One asking of a candidate.")
class DecisionAttempt:
    at_ms: float = strawberry.field(description="Milliseconds after the request was accepted.")
    failed_after_ms: float | None = strawberry.field(description="How long until it failed.")
    error: str | None = strawberry.field(description="What went wrong, for programs.")
    message: str | None = strawberry.field(description="What went wrong, for people.")


@strawberry.type(description="A model that might have answered.")
class DecisionCandidate:
    model: str = strawberry.field(description="Its name.")
    verdict: DecisionVerdict = strawberry.field(description="Its place.")
    code: str = strawberry.field(description="Why, for programs.")
    reason: str = strawberry.field(description="Why, for people.")
    outcome: CandidateOutcome = strawberry.field(description="What became of it.")
    attempts: list[DecisionAttempt] = strawberry.field(description="Each time it was asked.")

    @classmethod
    def of(cls, candidate: core.DecisionCandidate) -> "DecisionCandidate":
        return cls(
            model=candidate.model,
            verdict=DecisionVerdict[candidate.verdict.upper()],
            code=candidate.code,
            reason=candidate.reason,
            outcome=CandidateOutcome[candidate.outcome.upper()],
            attempts=[
                DecisionAttempt(
                    at_ms=each.at_ms,
                    failed_after_ms=each.failed_after_ms,
                    error=each.error,
                    message=each.message,
                )
                for each in candidate.attempts
            ],
        )


@strawberry.enum(description="What a request did to a model in memory.")
class MemoryChangeKind(Enum):
    LOAD = strawberry.enum_value("LOAD", description="It had the model loaded.")
    EVICTION = strawberry.enum_value("EVICTION", description="The model made room for a load.")


@strawberry.type(description="A load, or an eviction, that a request caused.")
class MemoryChange:
    at_ms: float = strawberry.field(description="Milliseconds after the request was accepted.")
    change: MemoryChangeKind = strawberry.field(description="Which of both.")
    model: str = strawberry.field(description="The name of the model.")
    reason: str | None = strawberry.field(
        description="Of an eviction: load, for a model of the same provider; neighbour, of another."
    )


@strawberry.type(description="Why a request went where it went.")
class Decision:
    id: strawberry.ID | None = strawberry.field(
        description="As X-Gateway-Decision told it, a stream's own id; null for a dry run."
    )
    kind: DecisionKind = strawberry.field(description="What it is about.")
    source: DecisionSource = strawberry.field(description="Where it was read.")
    requested_model: str = strawberry.field(description="The model as the caller wrote it.")
    rule: str | None = strawberry.field(
        description="listed, weighted or warm_first, the order of a virtual model; alias; name. "
        "Null where only the record of the stream is left."
    )
    rule_version: int | None = strawberry.field(
        description="Of a virtual model: the version of its route; 0: the configuration's."
    )
    candidates: list[DecisionCandidate] = strawberry.field(
        description="Who might answer, in the order they are asked, then who may not."
    )
    provider: str | None = strawberry.field(description="The provider that was asked last.")
    model: str | None = strawberry.field(description="The model's name at that provider.")
    outcome: DecisionOutcome = strawberry.field(description="What became of the request.")
    error: str | None = strawberry.field(description="What went wrong, for programs.")
    message: str | None = strawberry.field(description="What went wrong, for people.")
    face: str = strawberry.field(description="The API it came in by, such as native or openai.")
    caller: str = strawberry.field(description="Id of the key that asked; empty without keys.")
    request_id: str = strawberry.field(description="Id of the request, as X-Request-Id told it.")
    stream_id: strawberry.ID | None = strawberry.field(description="The stream, if it is one's.")
    node: str = strawberry.field(description="The gateway that decided.")
    opened_at: datetime = strawberry.field(description="When the request was accepted.")
    closed_at: datetime | None = strawberry.field(description="When it ended.")
    timings: Timings | None = strawberry.field(description="Where its time went.")
    memory: list[MemoryChange] = strawberry.field(
        description="The loads and evictions that it caused, oldest first."
    )

    @classmethod
    def of(cls, record: core.DecisionRecord) -> "Decision":
        return cls(
            id=None if record.id is None else strawberry.ID(record.id),
            kind=DecisionKind[record.kind.upper()],
            source=DecisionSource[record.source.upper()],
            requested_model=record.requested_model,
            rule=record.rule,
            rule_version=record.rule_version,
            candidates=[DecisionCandidate.of(each) for each in record.candidates],
            provider=record.provider,
            model=record.model,
            outcome=DecisionOutcome[record.outcome.upper()],
            error=record.error,
            message=record.message,
            face=record.face,
            caller=record.caller,
            request_id=record.request_id,
            stream_id=None if record.stream_id is None else strawberry.ID(record.stream_id),
            node=record.node,
            opened_at=to_datetime(record.opened_at),
            closed_at=None if record.closed_at is None else to_datetime(record.closed_at),
            timings=None if record.timings is None else Timings.of(record.timings),
            memory=[
                MemoryChange(
                    at_ms=each.at_ms,
                    change=MemoryChangeKind[each.change.upper()],
                    model=each.model,
                    reason=each.reason,
                )
                for each in record.memory
            ],
        )


@strawberry.input(description="Which decisions; where several are there, all must fit.")
class DecisionFilter:
    requested_model: str | None = strawberry.field(
        default=None, description="The model as the caller wrote it."
    )
    provider: str | None = strawberry.field(default=None, description="Who was asked last.")
    model: str | None = strawberry.field(default=None, description="Its name at that provider.")
    outcome: DecisionOutcome | None = strawberry.field(
        default=None, description="What became of the request."
    )
    error: str | None = strawberry.field(default=None, description="The code of its error.")
    caller: str | None = strawberry.field(default=None, description="Id of the key that asked.")
    since: datetime | None = strawberry.field(default=None, description="Not before this.")
    until: datetime | None = strawberry.field(default=None, description="Before this.")

    def to_core(self, limit: int) -> core.DecisionFilter:
        outcome = None if self.outcome is None else _OUTCOMES[self.outcome]
        return core.DecisionFilter(
            requested_model=self.requested_model,
            provider=self.provider,
            model=self.model,
            outcome=outcome,
            error=self.error,
            caller=self.caller,
            since=_to_unix(self.since),
            until=_to_unix(self.until),
            limit=limit,
        )


def _to_unix(moment: datetime | None) -> float | None:
    """Return Unix seconds; without a time zone it is UTC."""
    if moment is None:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


_OUTCOMES: dict[DecisionOutcome, core.Outcome] = {
    DecisionOutcome[name.upper()]: name for name in core.OUTCOMES
}

_Id = Annotated[strawberry.ID, strawberry.argument(description="Id of the decision.")]
_Filter = Annotated[DecisionFilter | None, strawberry.argument(description="Which of them.")]
_Newest = Annotated[int, strawberry.argument(description="How many, newest first; 1 to 200.")]
_Generate = Annotated[
    GenerateInput, strawberry.argument(description="What would be asked, and of which model.")
]


async def find_decision(info: Info, id: _Id) -> Decision | None:
    context = info.context
    return Decision.of(await context.gateway.decisions.find(id, caller=context.caller))


async def list_decisions(
    info: Info, filter: _Filter = None, first: _Newest = 20
) -> list[Decision] | None:
    context = info.context
    wanted = (filter or DecisionFilter()).to_core(core.require_limit(first, "first"))
    found = await context.gateway.decisions.recent(wanted, caller=context.caller)
    return [Decision.of(record) for record in found]


async def explain_route(info: Info, input: _Generate) -> Decision | None:
    context = info.context
    asked = input.to_core(telemetry.request_id.get(), context.read_body)
    record = await context.gateway.decisions.explain(asked, face="graphql", caller=context.caller)
    return Decision.of(record)
