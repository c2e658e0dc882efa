"""Rotations as GraphQL shows them, and what is asked of them."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import datetime
from enum import Enum
from typing import Annotated

import strawberry

from gateway.core import rotation as core
from gateway.core.errors import ShuttingDown
from gateway.services.rotation import ModelRotationService
from schema.context import Info
from schema.types import Long, to_datetime


@strawberry.enum(description="Why a step is taken.")
class RotationTrigger(Enum):
    INTERVAL = strawberry.enum_value("INTERVAL", description="The interval is over.")
    CRON = strawberry.enum_value("CRON", description="It is one of the times of its cron.")
    REQUESTS = strawberry.enum_value("REQUESTS", description="It was asked often enough.")
    HAND = strawberry.enum_value("HAND", description="Somebody wants it.")


@strawberry.enum(description="Where a step is.")
class RotationStepState(Enum):
    QUEUED = strawberry.enum_value("QUEUED", description="No gateway has begun with it.")
    RUNNING = strawberry.enum_value("RUNNING", description="A gateway is at it; see phase.")
    SUCCEEDED = strawberry.enum_value("SUCCEEDED", description="Another model answers.")
    FAILED = strawberry.enum_value("FAILED", description="The model before it stays.")
    CANCELLED = strawberry.enum_value("CANCELLED", description="It was paused before it began.")


@strawberry.enum(description="How far a step is.")
class RotationPhase(Enum):
    WAITING = strawberry.enum_value("WAITING", description="For a time with fewer requests.")
    WARMING = strawberry.enum_value(
        "WARMING", description="The next model is being loaded; the one before it answers."
    )
    DRAINING = strawberry.enum_value(
        "DRAINING", description="Requests wait for the next model; streams of the last may finish."
    )
    LOADING = strawberry.enum_value(
        "LOADING", description="The next model is being loaded, and requests wait for it."
    )
    RELEASING = strawberry.enum_value(
        "RELEASING", description="The next model answers; the one before it goes."
    )


@strawberry.type(description="A model whose turn it was, and that was passed over.")
class RotationSkip:
    model: str = strawberry.field(description="Its name in the rotation.")
    reason: str = strawberry.field(description="Why.")


@strawberry.type(description="A step of a rotation from one model to the next.")
class RotationStep:
    id: strawberry.ID = strawberry.field(description="The id of the step.")
    trigger: RotationTrigger = strawberry.field(description="Why it is taken.")
    state: RotationStepState = strawberry.field(description="Where it is.")
    phase: RotationPhase = strawberry.field(description="How far it is, or came.")
    origin: str = strawberry.field(description="The model that answered before.")
    wish: str | None = strawberry.field(description="The model that was asked for; null: any.")
    target: str | None = strawberry.field(description="The model that was chosen.")
    skipped: list[RotationSkip] = strawberry.field(description="Who was passed over.")
    message: str | None = strawberry.field(description="What there is to say of its end.")
    node: str | None = strawberry.field(description="The gateway that is at it, or was.")
    asked_at: datetime = strawberry.field(description="When it was queued.")
    begun_at: datetime | None = strawberry.field(description="When a gateway began.")
    ended_at: datetime | None = strawberry.field(description="When it ended.")

    @classmethod
    def of(cls, step: core.Step) -> "RotationStep":
        return cls(
            id=strawberry.ID(step.id),
            trigger=RotationTrigger[step.trigger.name],
            state=RotationStepState[step.state.name],
            phase=RotationPhase[step.phase.name],
            origin=step.origin,
            wish=step.wish,
            target=step.target,
            skipped=[RotationSkip(model=s.model, reason=s.reason) for s in step.skipped],
            message=step.message,
            node=step.node,
            asked_at=to_datetime(step.asked_at),
            begun_at=_time(step.begun_at),
            ended_at=_time(step.ended_at),
        )


@strawberry.type(description="A name that stands for one model after the other.")
class Rotation:
    name: str = strawberry.field(description="Without the prefix.")
    model: str = strawberry.field(description="What requests ask for: rotation/name.")
    current: str = strawberry.field(description="The model that answers.")
    models: list[str] = strawberry.field(description="Who takes turns, in that order.")
    interval_seconds: float | None = strawberry.field(description="Between two steps.")
    cron: str | None = strawberry.field(description="When steps come.")
    timezone: str = strawberry.field(description="The time zone of cron.")
    requests: Long | None = strawberry.field(description="How many a model answers in its turn.")
    warm_up: bool = strawberry.field(
        description="The next is loaded beside the one before where both have room."
    )
    unload: bool = strawberry.field(description="The one before is unloaded after.")
    drain_seconds: float = strawberry.field(description="How long its streams are waited for.")
    busy_streams: Long = strawberry.field(description="With more requests a step does not begin.")
    yield_seconds: float = strawberry.field(description="How long it waits for fewer streams.")
    source: str = strawberry.field(description="config or database.")
    paused: bool = strawberry.field(description="No step begins by itself.")
    due_at: datetime | None = strawberry.field(description="When a step comes by the clock.")
    counted: Long = strawberry.field(description="Requests since the last step, where they count.")
    step: RotationStep | None = strawberry.field(description="The step that is under way.")
    created_at: datetime = strawberry.field(description="When it was made.")
    updated_at: datetime = strawberry.field(description="When it was changed last.")

    @classmethod
    def of(cls, rotation: core.Rotation) -> "Rotation":
        order = rotation.order
        return cls(
            name=rotation.name,
            model=rotation.model,
            current=rotation.current,
            models=list(order.models),
            interval_seconds=order.interval_s,
            cron=order.cron,
            timezone=order.timezone,
            requests=None if order.requests is None else Long(order.requests),
            warm_up=order.warm_up,
            unload=order.unload,
            drain_seconds=order.drain_s,
            busy_streams=Long(order.busy_streams),
            yield_seconds=order.yield_s,
            source=rotation.source,
            paused=rotation.paused,
            due_at=_time(rotation.due_at),
            counted=Long(rotation.counted),
            step=None if rotation.step is None else RotationStep.of(rotation.step),
            created_at=to_datetime(rotation.created_at),
            updated_at=to_datetime(rotation.updated_at),
        )


@strawberry.type(description="A rotation that is new or has changed.")
class RotationEvent:
    name: str = strawberry.field(description="Its name.")
    rotation: Rotation | None = strawberry.field(description="As it is now; null: removed.")


_DEFAULTS = core.RotationOrder(())


@strawberry.input(
    description="A rotation; with neither interval, cron nor requests it steps only by hand."
)
class RotationInput:
    name: str = strawberry.field(description="Up to 64 letters, digits, '_', '.' and '-'.")
    models: list[str] = strawberry.field(description="2 to 64 models of any provider.")
    interval_seconds: float | None = strawberry.field(
        default=None, description="1 or more; not beside cron."
    )
    cron: str | None = strawberry.field(
        default=None, description="Minute, hour, day of the month, month, day of the week."
    )
    timezone: str = strawberry.field(
        default=_DEFAULTS.timezone, description="Such as Europe/Berlin."
    )
    requests: Long | None = strawberry.field(
        default=None, description="How many a model answers in its turn."
    )
    warm_up: bool = strawberry.field(
        default=_DEFAULTS.warm_up,
        description="Load the next beside the one before where both have room.",
    )
    unload: bool = strawberry.field(
        default=_DEFAULTS.unload, description="Unload the one before once nobody uses it."
    )
    drain_seconds: float = strawberry.field(
        default=_DEFAULTS.drain_s, description="How long its streams are waited for."
    )
    busy_streams: Long = strawberry.field(
        default=Long(_DEFAULTS.busy_streams),
        description="While more run or wait, a step does not begin.",
    )
    yield_seconds: float = strawberry.field(
        default=_DEFAULTS.yield_s, description="For no longer than this."
    )

    def to_core(self) -> core.RotationOrder:
        return core.RotationOrder(
            models=tuple(self.models),
            interval_s=self.interval_seconds,
            cron=self.cron,
            timezone=self.timezone,
            requests=self.requests,
            warm_up=self.warm_up,
            unload=self.unload,
            drain_s=self.drain_seconds,
            busy_streams=self.busy_streams,
            yield_s=self.yield_seconds,
        )


_Name = Annotated[str, strawberry.argument(description="The name of a rotation.")]
_Names = Annotated[list[str] | None, strawberry.argument(description="Only those of these names.")]
_Input = Annotated[RotationInput, strawberry.argument(description="What it shall be.")]
_To = Annotated[
    str | None, strawberry.argument(description="The model to go to; null: whose turn it is.")
]
_First = Annotated[int, strawberry.argument(description="How many, newest first; up to 500.")]


async def list_rotations(info: Info) -> list[Rotation] | None:
    return [Rotation.of(each) for each in await info.context.gateway.rotations.all()]


async def find_rotation(info: Info, name: _Name) -> Rotation | None:
    return Rotation.of(await info.context.gateway.rotations.find(name))


async def list_steps(info: Info, name: _Name, first: _First = 50) -> list[RotationStep] | None:
    steps = await info.context.gateway.rotations.history(name, first)
    return [RotationStep.of(step) for step in steps]


async def set_rotation(info: Info, input: _Input) -> Rotation | None:
    return Rotation.of(await _serving(info).put(input.name, input.to_core()))


async def delete_rotation(info: Info, name: _Name) -> Rotation | None:
    return Rotation.of(await _serving(info).remove(name))


async def pause_rotation(info: Info, name: _Name) -> Rotation | None:
    return Rotation.of(await _serving(info).pause(name))


async def resume_rotation(info: Info, name: _Name) -> Rotation | None:
    return Rotation.of(await _serving(info).resume(name))


async def advance_rotation(info: Info, name: _Name, to: _To = None) -> RotationStep | None:
    return RotationStep.of(await _serving(info).advance(name, to))


async def watch_rotations(info: Info, names: _Names = None) -> AsyncGenerator[RotationEvent, None]:
    async with aclosing(info.context.gateway.rotations.watch(names or ())) as events:
        async for event in events:
            rotation = event.rotation
            yield RotationEvent(
                name=event.name, rotation=None if rotation is None else Rotation.of(rotation)
            )


def _serving(info: Info) -> ModelRotationService:
    """Return the service; raises ShuttingDown while the gateway drains."""
    if info.context.gateway.streams.draining:
        raise ShuttingDown("The gateway is shutting down.")
    return info.context.gateway.rotations


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else to_datetime(seconds)
