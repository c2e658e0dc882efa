"""ModelFeed: a snapshot first, then every change once, for readers quick and slow."""

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import Overloaded, ShuttingDown
from gateway.core.models import ModelStateChange
from gateway.core.names import ModelRef
from gateway.core.states import ModelState
from gateway.services.feed import BUFFER_CHANGES, MAX_STATES, Interest, ModelFeed, Subscription

LOADED, LOADING, NOT_LOADED = ModelState.LOADED, ModelState.LOADING, ModelState.NOT_LOADED
Told = tuple[bool, list[tuple[str, ModelState]]]


def change(name: str, state: ModelState, provider: str = "p") -> ModelStateChange:
    return ModelStateChange(ModelRef(provider, name), state)


def filled(*changes: ModelStateChange, max_subscribers: int = 4) -> ModelFeed:
    """Return a feed whose first look found `changes`."""
    feed = ModelFeed(max_subscribers=max_subscribers)
    providers = {each.ref.provider for each in changes}
    truths = {name: [c for c in changes if c.ref.provider == name] for name in providers}
    feed.reconcile(truths, since=feed.mark())
    return feed


async def told(subscription: Subscription) -> Told:
    """Return what the next update says; it must be there already."""
    with anyio.fail_after(10):
        update = await subscription.read()
    return update.is_snapshot, [(each.ref.model, each.state) for each in update.states]


def is_silent(subscription: Subscription) -> bool:
    return subscription._next() is None


async def test_the_first_update_is_the_present_and_the_next_what_changed_since() -> None:
    feed = filled(change("b", NOT_LOADED), change("a", LOADED))
    with feed.subscribe(Interest()) as subscription:
        feed.observe(change("b", LOADING))
        assert await told(subscription) == (True, [("a", LOADED), ("b", LOADING)])
        feed.observe(change("b", LOADED))
        feed.observe(change("a", ModelState.UNLOADING))
        assert await told(subscription) == (False, [("b", LOADED), ("a", ModelState.UNLOADING)])
        assert is_silent(subscription)


async def test_a_subscriber_who_comes_before_the_first_look_waits_for_it() -> None:
    feed = ModelFeed(max_subscribers=1)
    seen: list[Told] = []

    async def read(subscription: Subscription) -> None:
        seen.append(await told(subscription))

    with feed.subscribe(Interest()) as subscription:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read, subscription)
            await anyio.wait_all_tasks_blocked()
            assert seen == []
            feed.observe(change("a", LOADING))
            feed.reconcile({"p": [change("a", NOT_LOADED)]}, since=0)
    assert seen == [(True, [("a", LOADING)])]


async def test_a_listing_tells_what_no_transition_told() -> None:
    feed = filled(change("a", NOT_LOADED))
    with feed.subscribe(Interest()) as subscription:
        await told(subscription)
        feed.reconcile({"p": [change("a", LOADED), change("new", NOT_LOADED)]}, since=feed.mark())
        assert await told(subscription) == (False, [("a", LOADED), ("new", NOT_LOADED)])
        feed.reconcile({"p": [change("a", LOADED), change("new", NOT_LOADED)]}, since=feed.mark())
        assert is_silent(subscription)


async def test_a_listing_that_was_taken_before_a_transition_does_not_undo_it() -> None:
    feed = filled(change("a", NOT_LOADED))
    with feed.subscribe(Interest()) as subscription:
        await told(subscription)
        begun = feed.mark()
        feed.observe(change("a", LOADING))
        feed.reconcile({"p": [change("a", NOT_LOADED)]}, since=begun)
        assert await told(subscription) == (False, [("a", LOADING)])
        assert is_silent(subscription)


async def test_a_model_that_went_away_is_missing_from_a_new_snapshot() -> None:
    feed = filled(change("a", LOADED), change("b", LOADED), change("c", LOADED, "other"))
    with feed.subscribe(Interest()) as subscription:
        await told(subscription)
        feed.reconcile({"p": [change("a", LOADED)]}, since=feed.mark())
        assert await told(subscription) == (True, [("c", LOADED), ("a", LOADED)])


async def test_a_model_in_memory_that_no_listing_shows_stays_until_it_is_unloaded() -> None:
    feed = filled(change("a", LOADED))
    with feed.subscribe(Interest()) as subscription:
        await told(subscription)
        feed.observe(change("pinned", LOADED))
        feed.reconcile({"p": [change("a", LOADED)]}, since=feed.mark())
        assert await told(subscription) == (False, [("pinned", LOADED)])
        feed.observe(change("pinned", NOT_LOADED))
        feed.reconcile({"p": [change("a", LOADED)]}, since=feed.mark())
        assert await told(subscription) == (False, [("pinned", NOT_LOADED)])
        assert is_silent(subscription)
    assert [state.ref.model for state in feed.states()] == ["a"]


async def test_a_transition_without_a_difference_is_not_told() -> None:
    feed = filled(change("a", LOADED))
    with feed.subscribe(Interest()) as subscription:
        await told(subscription)
        feed.observe(ModelStateChange(ModelRef("p", "a"), LOADED, size_bytes=7))
        assert is_silent(subscription)


@pytest.mark.parametrize(
    ("interest", "names"),
    [
        (Interest(), ["c", "a", "b"]),
        (Interest(providers=frozenset({"p"})), ["a", "b"]),
        (Interest(models=frozenset({ModelRef("p", "b"), ModelRef("o", "c")})), ["c", "b"]),
        (Interest(models=frozenset({ModelRef("o", "c")}), providers=frozenset({"p"})), []),
    ],
)
async def test_only_what_is_of_interest_is_told(interest: Interest, names: list[str]) -> None:
    models = [change("a", LOADED), change("b", LOADED), change("c", LOADED, "o")]
    feed = filled(*models)
    with feed.subscribe(interest) as subscription:
        assert await told(subscription) == (True, [(name, LOADED) for name in names])
        for model in models:
            feed.observe(change(model.ref.model, LOADING, model.ref.provider))
        expected = [name for name in ("a", "b", "c") if name in names]
        if expected:
            assert await told(subscription) == (False, [(name, LOADING) for name in expected])
        assert is_silent(subscription)


async def test_a_reader_who_is_behind_by_more_than_the_buffer_gets_the_present_instead() -> None:
    feed = filled(change("a", NOT_LOADED))
    with feed.subscribe(Interest()) as slow, feed.subscribe(Interest()) as quick:
        await told(slow)
        await told(quick)
        for count in range(BUFFER_CHANGES * 4 + 1):
            state = (LOADING, LOADED)[count % 2]
            feed.observe(change("a", state))
            assert await told(quick) == (False, [("a", state)])
        assert len(slow._changes) <= BUFFER_CHANGES
        assert await told(slow) == (True, [("a", LOADING)])
        assert is_silent(slow)


async def test_very_many_models_are_told_in_parts_and_changes_come_after_them() -> None:
    names = [f"m{number:04}" for number in range(MAX_STATES * 2 + 1)]
    feed = filled(*(change(name, NOT_LOADED) for name in names))
    with feed.subscribe(Interest()) as subscription:
        parts = [await told(subscription)]
        feed.observe(change(names[-1], LOADING))
        parts += [await told(subscription), await told(subscription)]
        assert [is_snapshot for is_snapshot, _ in parts] == [True, False, False]
        assert [name for _, part in parts for name, _ in part] == names
        assert await told(subscription) == (False, [(names[-1], LOADING)])


async def test_there_are_at_most_so_many_subscribers() -> None:
    feed = filled(change("a", LOADED), max_subscribers=1)
    with feed.subscribe(Interest()):
        with pytest.raises(Overloaded), feed.subscribe(Interest()):
            pass
        assert feed.subscriber_count == 1
    assert feed.subscriber_count == 0
    with feed.subscribe(Interest()):
        pass


async def test_closing_ends_a_waiting_reader_after_what_it_has_not_read() -> None:
    feed = filled(change("a", LOADED))
    with feed.subscribe(Interest()) as subscription:
        await told(subscription)
        feed.observe(change("a", LOADING))
        feed.close()
        assert await told(subscription) == (False, [("a", LOADING)])
        with pytest.raises(ShuttingDown):
            await subscription.read()
    with pytest.raises(ShuttingDown), feed.subscribe(Interest()):
        pass


MODELS = [change(name, NOT_LOADED, provider) for provider in ("p", "q") for name in ("a", "b")]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("observe"), st.sampled_from(MODELS), st.sampled_from(list(ModelState))),
        st.tuples(
            st.just("list"),
            st.sampled_from(["p", "q"]),
            st.dictionaries(st.sampled_from(["a", "b"]), st.sampled_from(list(ModelState))),
        ),
        st.tuples(st.just("read"), st.none(), st.none()),
    ),
    max_size=60,
)


@given(steps=STEPS)
def test_who_reads_to_the_end_knows_the_present_whatever_happened(steps: list[tuple]) -> None:
    feed = ModelFeed(max_subscribers=1)
    feed.reconcile({}, since=0)
    shown: dict[ModelRef, ModelState] = {}

    def read(subscription: Subscription) -> None:
        while update := subscription._next():
            if update.is_snapshot:
                shown.clear()
            for state in update.states:
                # Each update tells something new; only what no listing ever showed may leave
                # the feed without a word, and come back.
                is_new = shown.get(state.ref) is not state.state
                assert update.is_snapshot or is_new or state.state is NOT_LOADED
                shown[state.ref] = state.state

    with feed.subscribe(Interest()) as subscription:
        for kind, subject, detail in steps:
            if kind == "observe":
                feed.observe(ModelStateChange(subject.ref, detail))
            elif kind == "list":
                truth = [change(name, state, subject) for name, state in detail.items()]
                feed.reconcile({subject: truth}, since=feed.mark())
            else:
                read(subscription)
        read(subscription)
    present = {each.ref: each.state for each in feed.states()}
    # A model that no listing ever showed and that is not in memory is told, then forgotten.
    assert {ref: s for ref, s in shown.items() if ref in present} == present
    assert {s for ref, s in shown.items() if ref not in present} <= {NOT_LOADED}
