from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import NoRoom
from gateway.core.eviction import HALF_LIFE, Demand, EvictionPolicy, choose_victims, keep_value
from gateway.core.models import Resident
from gateway.core.names import ModelRef


def resident(
    name: str,
    *,
    last_used: float = 0,
    leases: int = 0,
    size: int = 10,
    pinned: bool = False,
    slots: int = 1,
    heat: float = 0.0,
    load_s: float | None = None,
) -> Resident:
    return Resident(
        ModelRef("huggingface", name),
        size,
        leases=leases,
        last_used=last_used,
        pinned=pinned,
        slots=slots,
        heat=heat,
        load_s=load_s,
    )


def test_a_leased_model_is_never_evicted() -> None:
    busy, idle = resident("a", last_used=1, leases=1), resident("b", last_used=2)
    assert choose_victims([busy, idle], need_bytes=10, free_bytes=0) == [idle.ref]


def test_nothing_goes_when_there_is_room() -> None:
    assert choose_victims([resident("a")], need_bytes=5, free_bytes=5) == []


def test_the_least_recently_used_go_first_until_there_is_room() -> None:
    old, older, new = (resident(n, last_used=t) for n, t in (("b", 2), ("a", 1), ("c", 3)))
    assert choose_victims([old, new, older], need_bytes=15, free_bytes=0) == [older.ref, old.ref]


def test_a_slot_is_freed_even_if_there_are_bytes_enough() -> None:
    first, second = resident("a", last_used=1), resident("b", last_used=2)
    chosen = choose_victims([second, first], need_bytes=1, free_bytes=9, need_slots=1)
    assert chosen == [first.ref]


def test_when_all_are_pinned_or_busy_there_is_no_room() -> None:
    with pytest.raises(NoRoom):
        choose_victims([resident("a", pinned=True)], need_bytes=5, free_bytes=0)
    with pytest.raises(NoRoom):
        choose_victims([resident("a", leases=2)], need_bytes=0, free_bytes=0, need_slots=1)


@given(
    models=st.lists(
        st.builds(
            resident,
            st.uuids().map(str),
            last_used=st.floats(0, 100),
            leases=st.integers(0, 1),
            size=st.integers(0, 50),
            pinned=st.booleans(),
            slots=st.integers(0, 1),
            heat=st.floats(0, 50),
            load_s=st.none() | st.floats(0, 60),
        ),
        max_size=8,
    ),
    need=st.integers(0, 200),
    free=st.integers(-50, 100),
    slots=st.integers(-1, 4),
    policy=st.sampled_from(get_args(EvictionPolicy)),
)
def test_victims_are_idle_enough_and_no_more_than_needed(
    models: list[Resident], need: int, free: int, slots: int, policy: EvictionPolicy
) -> None:
    by_ref = {model.ref: model for model in models}
    idle = [model for model in models if not model.leases and not model.pinned]
    try:
        victims = choose_victims(
            models, need_bytes=need, free_bytes=free, need_slots=slots, policy=policy
        )
    except NoRoom:
        counted = sum(model.slots for model in idle)
        assert free + sum(m.memory_bytes for m in idle) < need or counted < slots
        return
    gone = [by_ref[ref] for ref in victims]
    assert all(model in idle for model in gone)
    freed = free + sum(model.memory_bytes for model in gone)
    freed_slots = sum(model.slots for model in gone)
    assert freed >= need and freed_slots >= slots
    for model in gone:
        assert freed - model.memory_bytes < need or freed_slots - model.slots < slots


def test_a_model_goes_for_nobody_that_there_is_room_without() -> None:
    small, large = resident("small", last_used=1, size=5), resident("large", last_used=2, size=20)
    assert choose_victims([small, large], need_bytes=20, free_bytes=0) == [large.ref]


def test_a_model_that_has_no_place_of_the_counted_ones_frees_none() -> None:
    theirs, own = resident("theirs", last_used=1, slots=0), resident("own", last_used=2)
    assert choose_victims([theirs, own], need_bytes=0, free_bytes=0, need_slots=1) == [own.ref]


def test_lrfu_lets_go_what_saves_the_fewest_seconds_of_loading() -> None:
    popular = resident("popular", last_used=1, heat=9, load_s=2)
    rare = resident("rare", last_used=2, heat=1, load_s=2)
    slow = resident("slow", last_used=2, heat=1, load_s=30)
    large = resident("large", last_used=2, heat=1, load_s=2, size=40)
    there = [popular, rare, slow, large]
    assert choose_victims(there, need_bytes=10, free_bytes=0, policy="lrfu") == [large.ref]
    # A place is a place, whatever its size.
    chosen = choose_victims(
        [popular, slow, large, rare], need_bytes=0, free_bytes=0, need_slots=2, policy="lrfu"
    )
    assert set(chosen) == {large.ref, rare.ref}
    assert choose_victims(there, need_bytes=10, free_bytes=0) == [popular.ref]


def test_a_load_that_was_never_seen_is_taken_to_go_by_its_size() -> None:
    known = resident("known", heat=2, size=500_000_000, load_s=1)
    unknown = resident("unknown", heat=2, size=500_000_000)
    assert keep_value(known) == keep_value(unknown)


def test_demand_halves_with_the_requests_that_follow_and_is_remembered_while_it_counts() -> None:
    demand, first, other = Demand(), resident("first").ref, resident("other").ref
    demand.note(first)
    for _ in range(HALF_LIFE):
        demand.note(other)
    assert demand.heat(first) == pytest.approx(0.5)
    assert demand.heat(other) > 20
    for _ in range(40 * HALF_LIFE):
        demand.note(other)
    assert demand.heat(first) == 0 and list(demand._asked) == [other]
