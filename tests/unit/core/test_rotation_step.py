"""How a rotation steps: told in examples, and held against every way in which moves can end."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.core.rotation import Phase, RotationOrder, Skipped, Step, StepState, Trigger
from gateway.core.rotation_step import (
    MAX_TURNS,
    AwaitQuiet,
    Drain,
    End,
    Load,
    Move,
    Outlook,
    Skip,
    Survey,
    Switch,
    Unload,
    play,
)

ORDER = RotationOrder(("a", "b", "c"), drain_s=30.0, yield_s=60.0)
STEP = Step("s", "r", Trigger.HAND, "a", asked_at=1000.0)


class World:
    """Models in memory, streams, and a record of the step, as a performer keeps them.

    `draw` decides how each move goes; `crash_after` moves the performer dies and another begins
    from the record.
    """

    def __init__(self, order: RotationOrder, step: Step = STEP) -> None:
        self.order = order
        self.step = step
        self.loaded = {step.origin}
        self.serving = step.origin
        self.moves: list[Move] = []
        self.skipped: list[str] = []

    def fits(self) -> bool:
        return True

    def objection(self) -> str | None:
        return None

    def fault(self) -> str | None:
        return None

    def drains(self) -> bool:
        return True

    def perform(self, move: Move) -> Any:
        self.moves.append(move)
        match move:
            case AwaitQuiet():
                return None
            case Survey():
                return Outlook(self.objection(), self.fits())
            case Skip(model=model, reason=reason):
                self.skipped.append(model)
                skipped = (*self.step.skipped, Skipped(model, reason))
                self.step = replace(self.step, skipped=skipped)
            case Load(model=model, phase=phase):
                self.step = replace(self.step, phase=phase, target=model)
                fault = self.fault()
                if fault is None:
                    self.loaded.add(model)
                return fault
            case Switch(model=model, phase=phase):
                self.serving = model
                self.step = replace(self.step, phase=phase, target=model)
            case Drain():
                return self.drains()
            case Unload(model=model):
                fault = self.fault()
                if fault is None:
                    self.loaded.discard(model)
                return fault
        return None

    def run(self, crash_after: int | None = None) -> End | None:
        """Play to the end; None: crashed."""
        steps, outcome, count = play(self.order, self.step), None, 0
        while True:
            if count == crash_after:
                return None
            try:
                move = steps.send(outcome)
            except StopIteration as end:
                assert isinstance(end.value, End)
                return end.value
            count += 1
            outcome = self.perform(move)


def test_where_both_have_room_the_next_is_warm_before_it_answers() -> None:
    world = World(ORDER)
    assert world.run() == End(StepState.SUCCEEDED)
    assert world.moves == [
        AwaitQuiet(8, 1060.0),
        Survey("b", "a"),
        Load("b", Phase.WARMING),
        Switch("b", Phase.RELEASING),
        Drain("a", 30.0),
        Unload("a"),
    ]


def test_where_they_have_not_the_one_before_is_drained_and_goes_first() -> None:
    world = World(ORDER)
    world.fits = lambda: False  # type: ignore[method-assign]
    assert world.run() == End(StepState.SUCCEEDED)
    assert world.moves[2:] == [
        Switch("b", Phase.DRAINING),
        Drain("a", 30.0),
        Unload("a"),
        Load("b", Phase.LOADING),
        Switch("b", Phase.RELEASING),
        Drain("a", 30.0),
        Unload("a"),
    ]


def test_without_warm_up_the_one_before_goes_first_even_where_there_is_room() -> None:
    world = World(replace(ORDER, warm_up=False))
    assert world.run() == End(StepState.SUCCEEDED)
    assert world.moves[2] == Switch("b", Phase.DRAINING)


def test_the_one_before_may_stay_in_memory() -> None:
    world = World(replace(ORDER, unload=False))
    assert world.run() == End(StepState.SUCCEEDED)
    assert world.loaded == {"a", "b"}


def test_who_cannot_be_loaded_is_passed_over() -> None:
    world = World(ORDER)
    objections = iter(["ollama is away", None])
    world.objection = lambda: next(objections)  # type: ignore[method-assign]
    assert world.run() == End(StepState.SUCCEEDED)
    assert world.serving == "c"
    assert world.step.skipped == (Skipped("b", "ollama is away"),)


def test_where_nobody_can_take_over_the_one_before_stays() -> None:
    world = World(ORDER)
    world.objection = lambda: "away"  # type: ignore[method-assign]
    assert world.run() == End(StepState.FAILED, "Nobody else can answer now; a stays.")
    assert (world.serving, world.loaded) == ("a", {"a"})


def test_streams_that_do_not_end_are_not_cut() -> None:
    world = World(ORDER)
    world.fits = world.drains = lambda: False  # type: ignore[method-assign]
    end = world.run()
    assert end is not None and end.state is StepState.FAILED
    assert world.serving == "a"
    assert not any(isinstance(move, Unload) for move in world.moves)


def test_the_one_that_is_wished_for_is_the_only_one_tried() -> None:
    world = World(ORDER, replace(STEP, wish="c"))
    assert world.run() == End(StepState.SUCCEEDED)
    assert world.serving == "c"
    world = World(ORDER, replace(STEP, wish="c"))
    world.objection = lambda: "away"  # type: ignore[method-assign]
    end = world.run()
    assert end is not None and (end.state, world.serving) == (StepState.FAILED, "a")


def test_a_step_that_is_left_again_and_again_is_given_up() -> None:
    left = replace(STEP, fence=MAX_TURNS + 1, phase=Phase.LOADING, target="b")
    world = World(ORDER, left)
    world.serving = "b"
    end = world.run()
    assert end is not None and end.state is StepState.FAILED and world.serving == "a"
    world = World(ORDER, replace(left, phase=Phase.RELEASING))
    world.serving = "b"
    end = world.run()
    assert end is not None and end.state is StepState.SUCCEEDED and world.serving == "b"
    assert World(ORDER, replace(left, fence=MAX_TURNS)).run() == End(StepState.SUCCEEDED)


class DrawnWorld(World):
    """A world in which everything may go either way."""

    def __init__(self, order: RotationOrder, step: Step, data: st.DataObject) -> None:
        super().__init__(order, step)
        self._draw = lambda: data.draw(st.booleans())

    def fits(self) -> bool:
        return self._draw()

    def objection(self) -> str | None:
        return "no" if self._draw() else None

    def fault(self) -> str | None:
        return "broken" if self._draw() else None

    def drains(self) -> bool:
        return self._draw()

    def perform(self, move: Move) -> Any:
        if isinstance(move, Unload) and move.model == self.step.origin:
            assert self.serving != self.step.origin, "who answers is not unloaded"
        if isinstance(move, Load | Survey) and move.model != self.step.origin:
            assert move.model not in self.skipped, "who was passed over is not tried again"
        if isinstance(move, Switch) and move.phase is Phase.RELEASING:
            assert move.model in self.loaded, "who takes over is in memory"
        return super().perform(move)


ORDERS = st.builds(
    RotationOrder,
    models=st.integers(2, 5).map(lambda count: tuple("abcde"[:count])),
    warm_up=st.booleans(),
    unload=st.booleans(),
)


@given(ORDERS, st.none() | st.just("b"), st.lists(st.integers(0, 12), max_size=4), st.data())
def test_whatever_goes_wrong_a_step_ends_and_somebody_answers(
    order: RotationOrder, wish: str | None, crashes: list[int], data: st.DataObject
) -> None:
    world = DrawnWorld(order, replace(STEP, wish=wish), data)
    for crash in crashes:
        end = world.run(crash_after=crash)
        if end is not None:
            break
    else:
        end = world.run()
    assert end is not None
    assert len(world.moves) <= (len(crashes) + 1) * (6 * len(order.models) + 6)
    if end.state is StepState.SUCCEEDED:
        assert world.serving != STEP.origin and world.serving in order.models
        assert world.serving in world.loaded
        assert wish in (None, world.serving)
    else:
        assert end.state is StepState.FAILED and end.message
        assert world.serving == STEP.origin
