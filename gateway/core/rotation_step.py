"""How a rotation steps to its next model: what is done in which order, and why. Pure.

`play` yields moves and is sent how each went; what they do to models and to the database is their
performer's. It may be begun anew at any point from what was recorded of the step: every move may
be made twice.
"""

from collections.abc import Generator
from typing import Any

import msgspec

from gateway.core.rotation import Phase, RotationOrder, Step, StepState

MAX_TURNS = 5
"""How often a step is taken on: one that kills its gateway is not begun for ever."""


class AwaitQuiet(msgspec.Struct, frozen=True):
    """Wait until at most `busy_streams` requests wait or run, or until `deadline`."""

    busy_streams: int
    deadline: float


class Survey(msgspec.Struct, frozen=True):
    """Look at what loading `model` beside `beside` takes. Outcome: Outlook."""

    model: str
    beside: str


class Outlook(msgspec.Struct, frozen=True):
    """`objection`: why it cannot be loaded at all; `has_room`: the one before may stay beside."""

    objection: str | None = None
    has_room: bool = True


class Skip(msgspec.Struct, frozen=True):
    """Pass `model` over, and keep the reason."""

    model: str
    reason: str


class Load(msgspec.Struct, frozen=True):
    """Have `model` in memory. Outcome: None, or why that failed."""

    model: str
    phase: Phase


class Switch(msgspec.Struct, frozen=True):
    """Let `model` answer from now on."""

    model: str
    phase: Phase


class Drain(msgspec.Struct, frozen=True):
    """Wait until nobody uses `model`. Outcome: whether that came within `within_s`."""

    model: str
    within_s: float


class Unload(msgspec.Struct, frozen=True):
    """Have `model`, which nobody uses, out of memory. Outcome: None, or why that failed."""

    model: str


class End(msgspec.Struct, frozen=True):
    """How the step ends; the message is a sentence, where there is something to say."""

    state: StepState
    message: str | None = None


Move = AwaitQuiet | Survey | Skip | Load | Switch | Drain | Unload
Play = Generator[Move, Any, End]


def play(order: RotationOrder, step: Step) -> Play:
    """Yield what is to be done next, be sent its outcome, return how the step ends.

    It ends SUCCEEDED with another model that was loaded, or FAILED with the one before it.
    """
    if step.fence > MAX_TURNS:
        return (yield from _give_up(step))
    target = step.target
    if step.phase is not Phase.RELEASING or target is None:
        if step.phase is Phase.WAITING:
            yield AwaitQuiet(order.busy_streams, step.asked_at + order.yield_s)
        taken = yield from _take_over(order, step)
        if isinstance(taken, End):
            return taken
        target = taken
    if not order.unload or target == step.origin:
        return End(StepState.SUCCEEDED)
    return End(StepState.SUCCEEDED, (yield from _release(order, step.origin)))


def _give_up(step: Step) -> Generator[Move, Any, End]:
    told = f"It was begun {MAX_TURNS} times and left each time."
    if step.phase is Phase.RELEASING:
        return End(StepState.SUCCEEDED, told)
    yield Switch(step.origin, Phase.WAITING)
    return End(StepState.FAILED, told)


def _take_over(order: RotationOrder, step: Step) -> Generator[Move, Any, str | End]:
    """Find who is next and have him answer; return who does, or how the step ends without."""
    origin = step.origin
    is_broken = step.phase in (Phase.DRAINING, Phase.LOADING)
    passed_over = {skipped.model for skipped in step.skipped}
    for model in _candidates(order, step):
        if model in passed_over:
            continue
        outlook: Outlook = yield Survey(model, origin)
        fault = outlook.objection
        if fault is None and order.warm_up and outlook.has_room and not is_broken:
            fault = yield Load(model, Phase.WARMING)
        elif fault is None:
            # Both do not fit: requests wait for the next one from here on.
            yield Switch(model, Phase.DRAINING)
            is_broken = True
            if not (yield Drain(origin, order.drain_s)):
                yield Switch(origin, Phase.WAITING)
                return End(
                    StepState.FAILED,
                    f"There is no room beside {origin}, whose streams did not end within "
                    f"{order.drain_s:g} s.",
                )
            yield Unload(origin)
            fault = yield Load(model, Phase.LOADING)
        if fault is None:
            yield Switch(model, Phase.RELEASING)
            return model
        yield Skip(model, fault)
    if is_broken:
        yield Switch(origin, Phase.LOADING)
        yield Load(origin, Phase.LOADING)
    return End(StepState.FAILED, f"Nobody else can answer now; {origin} stays.")


def _candidates(order: RotationOrder, step: Step) -> list[str]:
    """Return who may be next, best first: whoever was begun with, who is wished for, whose turn
    it is."""
    if step.wish is not None:
        return [step.wish]
    others = [model for model in order.after(step.origin) if model != step.origin]
    begun = [step.target] if step.target in others else []
    return list(dict.fromkeys([*begun, *others]))


def _release(order: RotationOrder, model: str) -> Generator[Move, Any, str | None]:
    """Have the one before out of memory; return a sentence where it stays."""
    if not (yield Drain(model, order.drain_s)):
        return f"{model} stays in memory: it is still in use."
    fault = yield Unload(model)
    return None if fault is None else f"{model} stays in memory: {fault}"
