"""`routes`: the names that mean other models, and how they are changed."""

from datetime import datetime
from enum import Enum
from typing import Annotated

import strawberry

from gateway.core import rules as core
from gateway.core import virtual
from schema.context import Info
from schema.types import to_datetime


@strawberry.enum(description="Where a route is kept.")
class RouteSource(Enum):
    CONFIG = strawberry.enum_value("CONFIG", description="In the configuration; read-only here.")
    DATABASE = strawberry.enum_value("DATABASE", description="In the database.")


@strawberry.enum(description="Who is asked first of a route's candidates.")
class RouteOrder(Enum):
    LISTED = strawberry.enum_value("LISTED", description="The first that can do what is asked.")
    WEIGHTED = strawberry.enum_value("WEIGHTED", description="One by lot, by its weight.")
    WARM_FIRST = strawberry.enum_value("WARM_FIRST", description="One that is in memory.")


@strawberry.type(description="A model that may answer.")
class RouteCandidate:
    model: str = strawberry.field(description="Its name, or an alias.")
    weight: float = strawberry.field(description="Its share where the order is WEIGHTED.")


@strawberry.type(description="A name that means another model, or one of several.")
class ModelRoute:
    name: str = strawberry.field(description="What requests may use as model.")
    source: RouteSource = strawberry.field(description="Where it is kept.")
    model: str | None = strawberry.field(description="Of an alias: what it stands for.")
    order: RouteOrder | None = strawberry.field(
        description="Of a virtual model: who is asked first."
    )
    candidates: list[RouteCandidate] = strawberry.field(
        description="Of a virtual model: who may answer, best first."
    )
    continue_on_failure: bool = strawberry.field(
        description="Whether an answer that breaks is gone on with by another candidate."
    )
    max_continuations: int | None = strawberry.field(
        description="How often; null: as often as the operator allows."
    )
    version: int = strawberry.field(description="For setRoute and deleteRoute; 0: of CONFIG.")
    updated_at: datetime | None = strawberry.field(description="When it was changed last.")
    updated_by: str = strawberry.field(description="Id of the key that did.")
    problem: str | None = strawberry.field(description="Why it does not hold; null: it does.")
    warnings: list[str] = strawberry.field(
        description="What may be wrong with it: names that nobody is known to have. Told by "
        "setRoute alone."
    )

    @classmethod
    def of(cls, rule: core.Rule, warnings: list[str] | None = None) -> "ModelRoute":
        draft = rule.draft
        is_virtual = draft.model is None
        return cls(
            name=draft.name,
            source=RouteSource[rule.source.upper()],
            model=draft.model,
            order=RouteOrder[draft.order.upper()] if is_virtual else None,
            candidates=[
                RouteCandidate(model=each.model, weight=each.weight) for each in draft.candidates
            ],
            continue_on_failure=draft.continue_on_failure,
            max_continuations=draft.max_continuations,
            version=rule.version,
            updated_at=None if rule.updated_at is None else to_datetime(rule.updated_at),
            updated_by=rule.updated_by,
            problem=rule.problem,
            warnings=warnings or [],
        )


@strawberry.input(description="A model that may answer.")
class RouteCandidateInput:
    model: str = strawberry.field(description="Its name, or an alias.")
    weight: float = strawberry.field(default=1.0, description="Its share; from 0.")


@strawberry.input(description="What a name shall mean: either model, or candidates.")
class RouteInput:
    name: str = strawberry.field(description="1 to 512 characters.")
    model: str | None = strawberry.field(default=None, description="Makes an alias of this model.")
    candidates: list[RouteCandidateInput] | None = strawberry.field(
        default=None, description="Make a virtual model; best first."
    )
    order: RouteOrder = strawberry.field(
        default=RouteOrder.LISTED, description="Who is asked first."
    )
    continue_on_failure: bool = strawberry.field(
        default=False,
        description="Whether an answer that breaks is gone on with by another candidate.",
    )
    max_continuations: int | None = strawberry.field(
        default=None, description="How often; null: as often as the operator allows."
    )
    version: int | None = strawberry.field(
        default=None,
        description="The version that is replaced; 0: there must be none; null: whatever there is.",
    )

    def to_core(self) -> core.RuleDraft:
        candidates = tuple(
            virtual.Candidate(each.model, each.weight) for each in self.candidates or ()
        )
        return core.RuleDraft(
            self.name,
            self.model,
            candidates,
            _ORDERS[self.order],
            self.continue_on_failure,
            self.max_continuations,
        )


_ORDERS: dict[RouteOrder, virtual.Order] = {
    RouteOrder.LISTED: "listed",
    RouteOrder.WEIGHTED: "weighted",
    RouteOrder.WARM_FIRST: "warm_first",
}

_Route = Annotated[RouteInput, strawberry.argument(description="The name and what it shall mean.")]
_Name = Annotated[str, strawberry.argument(description="The name of the route.")]
_Version = Annotated[
    int | None, strawberry.argument(description="The version that is deleted; null: any.")
]


def list_routes(info: Info) -> list[ModelRoute]:
    return [ModelRoute.of(rule) for rule in info.context.gateway.rules.all()]


async def set_route(info: Info, input: _Route) -> ModelRoute | None:
    rules, draft = info.context.gateway.rules, input.to_core()
    rule = await rules.set(draft, expected=input.version, by=info.context.caller.id)
    return ModelRoute.of(rule, await rules.warnings(draft))


async def delete_route(info: Info, name: _Name, version: _Version = None) -> ModelRoute | None:
    return ModelRoute.of(await info.context.gateway.rules.remove(name, expected=version))
