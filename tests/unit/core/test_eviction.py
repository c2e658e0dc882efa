import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import NoRoom
from gateway.core.eviction import choose_victims
from gateway.core.models import Resident
from gateway.core.names import ModelRef


def resident(
    name: str, *, last_used: float = 0, leases: int = 0, size: int = 10, pinned: bool = False
) -> Resident:
    return Resident(
        ModelRef("huggingface", name), size, leases=leases, last_used=last_used, pinned=pinned
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
        ),
        max_size=8,
    ),
    need=st.integers(0, 200),
    free=st.integers(-50, 100),
    slots=st.integers(-1, 4),
)
def test_victims_are_idle_enough_and_no_more_than_needed(
    models: list[Resident], need: int, free: int, slots: int
) -> None:
    by_ref = {model.ref: model for model in models}
    idle = [model for model in models if not model.leases and not model.pinned]
    try:
        victims = choose_victims(models, need_bytes=need, free_bytes=free, need_slots=slots)
    except NoRoom:
        assert free + sum(m.memory_bytes for m in idle) < need or len(idle) < slots
        return
    freed = sum(by_ref[ref].memory_bytes for ref in victims)
    assert all(by_ref[ref] in idle for ref in victims)
    assert free + freed >= need
    assert len(victims) >= slots
    if victims:
        last = by_ref[victims[-1]].memory_bytes
        assert free + freed - last < need or len(victims) - 1 < slots
