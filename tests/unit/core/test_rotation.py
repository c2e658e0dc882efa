"""Rotations as data: what may be asked for, when it is time, and what the router is told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.core.errors import InvalidRequest
from gateway.core.rotation import (
    Rotation,
    RotationOrder,
    Step,
    StepState,
    Trigger,
    check_order,
    check_rotations,
    describe_rule,
    find_trigger,
    schedule,
)

ORDER = RotationOrder(("a", "b", "c"))


def rotation(order: RotationOrder = ORDER, **values: object) -> Rotation:
    made = Rotation("r", order, "database", order.models[0], created_at=0.0, updated_at=0.0)
    return replace(made, **values)


def test_the_others_follow_in_their_turns() -> None:
    assert ORDER.after("a") == ("b", "c")
    assert ORDER.after("b") == ("c", "a")
    assert ORDER.after("gone") == ("a", "b", "c")


@given(st.lists(st.text("abcdef", min_size=1), min_size=2, max_size=9, unique=True), st.data())
def test_every_model_comes_once_a_round(models: list[str], data: st.DataObject) -> None:
    order = RotationOrder(tuple(models))
    start = current = data.draw(st.sampled_from(models))
    seen = []
    for _ in models:
        current = order.after(current)[0]
        seen.append(current)
    assert sorted(seen) == sorted(models)
    assert current == start


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("r", replace(ORDER, models=("a",))),
        ("r", replace(ORDER, models=("a", "a"))),
        ("r", replace(ORDER, models=("a", "rotation/b"))),
        ("r", replace(ORDER, models=("a", ""))),
        ("r", replace(ORDER, models=tuple(str(n) for n in range(65)))),
        ("r", replace(ORDER, interval_s=0.5)),
        ("r", replace(ORDER, interval_s=float("nan"))),
        ("r", replace(ORDER, interval_s=60.0, cron="* * * * *")),
        ("r", replace(ORDER, cron="* * *")),
        ("r", replace(ORDER, timezone="Nowhere")),
        ("r", replace(ORDER, requests=0)),
        ("r", replace(ORDER, drain_s=-1.0)),
        ("r", replace(ORDER, busy_streams=-1)),
        ("r", replace(ORDER, yield_s=float("inf"))),
        ("", ORDER),
        ("a/b", ORDER),
        ("-a", ORDER),
        ("a" * 65, ORDER),
        ("a\n", ORDER),
    ],
)
def test_what_can_never_work_is_refused(name: str, order: RotationOrder) -> None:
    check_order("r", ORDER)
    with pytest.raises(InvalidRequest):
        check_order(name, order)


def test_a_rotation_does_not_lead_to_a_virtual_model_or_another_rotation() -> None:
    check_rotations({"r": ORDER}, rules=["chat"], aliases={"b": "ollama/b", "x": "rotation/x"})
    with pytest.raises(InvalidRequest):
        check_rotations({"r": ORDER}, rules=["b"], aliases={})
    with pytest.raises(InvalidRequest):
        check_rotations({"r": ORDER}, rules=(), aliases={"b": "rotation/x"})


def test_a_step_comes_by_the_interval_by_cron_or_by_requests() -> None:
    by_interval = replace(ORDER, interval_s=60.0)
    assert schedule(by_interval, 1000.0) == 1060.0
    assert find_trigger(rotation(by_interval, due_at=1060.0), 1059.9) is None
    assert find_trigger(rotation(by_interval, due_at=1060.0), 1060.0) is Trigger.INTERVAL
    by_cron = replace(ORDER, cron="* * * * *")
    assert schedule(by_cron, 1000.0) == 1020.0
    assert find_trigger(rotation(by_cron, due_at=1020.0), 1020.0) is Trigger.CRON
    by_requests = replace(ORDER, requests=5)
    assert schedule(by_requests, 1000.0) is None
    assert find_trigger(rotation(by_requests, counted=4), 0.0) is None
    assert find_trigger(rotation(by_requests, counted=5), 0.0) is Trigger.REQUESTS
    assert find_trigger(rotation(counted=5), 1e12) is None


def test_no_step_comes_while_it_is_paused_or_another_is_under_way() -> None:
    due = rotation(replace(ORDER, interval_s=60.0), due_at=0.0)
    assert find_trigger(due, 1.0)
    assert find_trigger(replace(due, paused=True), 1.0) is None
    step = Step("s", "r", Trigger.HAND, "a", 0.0)
    assert find_trigger(replace(due, step=step), 1.0) is None


def test_the_rule_asks_the_present_one_first_then_who_is_still_in_memory() -> None:
    def names(current: str, before: str | None = None) -> list[str]:
        rule = describe_rule(rotation(), current, before)
        assert (rule.name, rule.order) == ("rotation/r", "listed")
        return [candidate.model for candidate in rule.candidates]

    assert names("b") == ["b", "c", "a"]
    assert names("b", before="a") == ["b", "a", "c"]
    assert names("gone") == ["gone", "a", "b", "c"]


def test_a_step_is_free_when_nobody_has_it_any_more() -> None:
    queued = Step("s", "r", Trigger.HAND, "a", 0.0)
    assert queued.is_free("n", "b", 0.0)
    running = replace(queued, state=StepState.RUNNING, node="n", boot="b", leased_until=100.0)
    assert not running.is_free("n", "b", 99.0)
    assert not running.is_free("other", "b", 99.0)
    assert running.is_free("other", "b", 100.5)
    assert running.is_free("n", "next boot", 0.0)
    assert not replace(running, state=StepState.SUCCEEDED).is_free("other", "b", 1e9)
