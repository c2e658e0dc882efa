"""Rotations: names that stand for one of several models after the other. Pure.

What is asked for, the states of a step from one model to the next, and when it is time for one;
how a step goes is in `core.rotation_step`.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from enum import StrEnum
from typing import Literal

import msgspec

from gateway.core import cron
from gateway.core.errors import InvalidRequest
from gateway.core.names import MAX_NAME_LENGTH
from gateway.core.virtual import MAX_CANDIDATES, VirtualModel

RESERVED = "rotation"
"""What stands before the names of rotations, and cannot be a provider."""
PREFIX = f"{RESERVED}/"
SHORTEST_S = 1.0
"""Between two steps that nobody asked for."""
LONGEST_S = 366 * 86400.0
MOST_REQUESTS = 10**12

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")

Source = Literal["config", "database"]


class Trigger(StrEnum):
    """Why a step is taken."""

    INTERVAL = "INTERVAL"
    CRON = "CRON"
    REQUESTS = "REQUESTS"
    HAND = "HAND"


class StepState(StrEnum):
    """Where a step is. FAILED: the model before it stays."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


ACTIVE = frozenset({StepState.QUEUED, StepState.RUNNING})


class Phase(StrEnum):
    """How far a step is; who goes on with one that was left begins there."""

    WAITING = "WAITING"
    """For a time with fewer requests."""
    WARMING = "WARMING"
    """The next model is being loaded, the one before it answers."""
    DRAINING = "DRAINING"
    """Requests wait for the next model; streams of the one before it may finish."""
    LOADING = "LOADING"
    """The next model is being loaded, and requests wait for it."""
    RELEASING = "RELEASING"
    """The next model answers; the one before it goes once nobody uses it."""


class RotationOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a rotation shall do; with neither interval, cron nor requests only by hand.

    `requests` is how many of them a model answers before the next one's turn. With `warm_up` the
    next is loaded beside the one before where both have room. With `unload` the one before is
    unloaded after, once nobody uses it, for which up to `drain_s` is waited. While more than
    `busy_streams` requests wait or run, a step does not begin, for up to `yield_s`.
    """

    models: tuple[str, ...]
    interval_s: float | None = None
    cron: str | None = None
    timezone: str = "UTC"
    requests: int | None = None
    warm_up: bool = True
    unload: bool = True
    drain_s: float = 60.0
    busy_streams: int = 8
    yield_s: float = 60.0

    @property
    def clock(self) -> tuple[float | None, str | None, str]:
        """What the time of the next step goes by."""
        return self.interval_s, self.cron, self.timezone

    def after(self, model: str) -> tuple[str, ...]:
        """Return the others in their turns, from the one that follows `model`."""
        if model not in self.models:
            return self.models
        place = self.models.index(model)
        return (*self.models[place + 1 :], *self.models[:place])


class Skipped(msgspec.Struct, frozen=True):
    """A model whose turn it was, and why it was passed over."""

    model: str
    reason: str


class Step(msgspec.Struct, frozen=True):
    """One step from `origin` to the next model; times are Unix seconds of the database.

    `wish` is who is to be next, None: whose turn it is. `target` is who was chosen. `fence` rises
    each time that somebody takes the step on; what an earlier one writes is refused.
    """

    id: str
    rotation: str
    trigger: Trigger
    origin: str
    asked_at: float
    state: StepState = StepState.QUEUED
    phase: Phase = Phase.WAITING
    wish: str | None = None
    target: str | None = None
    skipped: tuple[Skipped, ...] = ()
    message: str | None = None
    fence: int = 0
    node: str | None = None
    boot: str | None = None
    leased_until: float | None = None
    begun_at: float | None = None
    ended_at: float | None = None

    @property
    def is_active(self) -> bool:
        return self.state in ACTIVE

    def is_free(self, node: str, boot: str, now: float) -> bool:
        """Tell whether the run `boot` of `node` may take it on: nobody has it, or whoever had it
        is gone."""
        if self.state is StepState.QUEUED:
            return True
        is_left = self.node == node and self.boot != boot
        is_over = self.leased_until is None or self.leased_until < now
        return self.state is StepState.RUNNING and (is_left or is_over)


class Rotation(msgspec.Struct, frozen=True):
    """A rotation as it is now. `due_at` is when a step comes by the clock, `counted` the requests
    since the last one, `step` the one that is queued or under way."""

    name: str
    order: RotationOrder
    source: Source
    current: str
    created_at: float
    updated_at: float
    paused: bool = False
    due_at: float | None = None
    counted: int = 0
    step: Step | None = None

    @property
    def model(self) -> str:
        """The name by which requests ask for it."""
        return PREFIX + self.name


def check_order(name: str, order: RotationOrder) -> None:
    """Raise InvalidRequest for a rotation that can never work."""
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"'{name[:64]}' is no name of a rotation.",
            hint="Up to 64 letters, digits, '_', '.' and '-'.",
            param="name",
        )
    _check_models(name, order.models)
    if order.interval_s is not None and order.cron is not None:
        raise InvalidRequest(f"'{name}' goes by an interval or by cron, not by both.", param="cron")
    if order.cron is not None:
        cron.check(order.cron, order.timezone)
    else:
        cron.read_zone(order.timezone)
    _check_range("interval_s", order.interval_s, SHORTEST_S, LONGEST_S)
    _check_range("requests", order.requests, 1, MOST_REQUESTS)
    _check_range("drain_s", order.drain_s, 0, LONGEST_S)
    _check_range("busy_streams", order.busy_streams, 0, MOST_REQUESTS)
    _check_range("yield_s", order.yield_s, 0, LONGEST_S)


def schedule(order: RotationOrder, now: float) -> float | None:
    """Return when the next step comes by the clock, if `now` is when the last one ended."""
    if order.cron is not None:
        return cron.next_time(order.cron, order.timezone, now)
    return None if order.interval_s is None else now + order.interval_s


def find_trigger(rotation: Rotation, now: float) -> Trigger | None:
    """Return why it is time for a step; None: it is not."""
    if rotation.paused or rotation.step is not None:
        return None
    if rotation.due_at is not None and rotation.due_at <= now:
        return Trigger.INTERVAL if rotation.order.cron is None else Trigger.CRON
    requests = rotation.order.requests
    if requests is not None and rotation.counted >= requests:
        return Trigger.REQUESTS
    return None


def describe_rule(rotation: Rotation, current: str, before: str | None = None) -> VirtualModel:
    """Return the rotation as the rule that the router follows: `current` first, then `before`,
    which is in memory yet, then the others in their turns for when those fail."""
    others = rotation.order.after(current)
    names = dict.fromkeys([current, *([before] if before else []), *others])
    candidates = [{"model": name} for name in names]
    return msgspec.convert({"name": rotation.model, "candidates": candidates}, VirtualModel)


def check_rotations(
    orders: Mapping[str, RotationOrder], *, rules: Collection[str], aliases: Mapping[str, str]
) -> None:
    """Raise InvalidRequest for a rotation that can never work, or leads to what stands for several
    models itself: `rules` are the virtual models, and aliases may be those of rotations."""
    for name, order in orders.items():
        check_order(name, order)
        for model in order.models:
            if model in rules:
                raise InvalidRequest(f"'{name}' leads to '{model}', which is a virtual model.")
            if aliases.get(model, "").startswith(PREFIX):
                raise InvalidRequest(f"'{name}' leads to '{aliases[model]}', another rotation.")


def _check_models(name: str, models: Sequence[str]) -> None:
    if not 2 <= len(models) <= MAX_CANDIDATES:
        raise InvalidRequest(f"'{name}' needs 2 to {MAX_CANDIDATES} models.", param="models")
    if len(set(models)) < len(models):
        raise InvalidRequest(f"'{name}' names a model twice.", param="models")
    for model in models:
        if not 1 <= len(model) <= MAX_NAME_LENGTH or not model.isprintable():
            raise InvalidRequest("A model name has 1 to 512 printable characters.", param="models")
        if model.startswith(PREFIX):
            raise InvalidRequest(f"'{name}' leads to '{model}', another rotation.", param="models")


def _check_range(name: str, value: float | None, least: float, most: float) -> None:
    if value is not None and not least <= value <= most:
        raise InvalidRequest(f"'{name}' is from {least:g} to {most:g}.", param=name)
