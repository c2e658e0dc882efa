import logging
from typing import Any

import anyio
import pytest

from gateway.core.errors import DatabaseUnavailable, ProviderUnavailable
from gateway.core.models import ModelInfo, ModelStateChange
from gateway.core.names import ModelRef
from gateway.core.states import ModelState, ProviderState
from gateway.services.catalog import Catalog
from gateway.services.feed import ModelFeed
from gateway.services.tracker import ModelStateTracker
from gateway.testing import MemoryModelStateStore, MemoryProviderStore
from tests.scripted_provider import ECHO, ScriptedProvider


class House:
    def __init__(self) -> None:
        self.provider = ScriptedProvider()
        self.models = MemoryModelStateStore()
        self.providers = MemoryProviderStore()
        self.feed = ModelFeed(max_subscribers=8)
        named = {self.provider.name: self.provider}
        self.tracker = ModelStateTracker(
            Catalog(named, timeout_s=1, ttl_s=60),
            self.models,
            self.providers,
            self.feed,
            provider_names=list(named),
            node="n",
            interval_s=60,
            now=lambda: 5.0,
        )

    async def states(self) -> dict[str, ModelState]:
        return {str(change.ref): change.state for change in await self.models.all("n")}


async def test_the_first_look_writes_what_is_there() -> None:
    house = House()
    await house.tracker.reconcile()
    assert await house.states() == {"scripted/echo": ModelState.LOADED}
    [status] = await house.providers.all("n")
    assert (status.state, status.last_seen_at) == (ProviderState.UP, 5.0)


async def test_a_model_that_went_away_is_forgotten() -> None:
    house = House()
    await house.tracker.reconcile()
    house.provider.listed = []
    await house.tracker.reconcile()
    assert await house.states() == {}


async def test_a_provider_that_does_not_answer_keeps_its_models_and_its_last_sight() -> None:
    house = House()
    await house.tracker.reconcile()
    house.provider.listing_error = ProviderUnavailable("scripted", "gone")
    await house.tracker.reconcile()
    assert await house.states() == {"scripted/echo": ModelState.LOADED}
    [status] = await house.providers.all("n")
    assert (status.state, status.error_code, status.last_seen_at) == (
        ProviderState.DOWN,
        "provider_unavailable",
        5.0,
    )


async def test_a_transition_is_written_at_once() -> None:
    house = House()
    house.provider.listed = [ModelInfo(ECHO)]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(house.tracker.run)
        await anyio.wait_all_tasks_blocked()
        house.tracker.observe(ModelStateChange(ECHO, ModelState.LOADING))
        house.tracker.observe(ModelStateChange(ECHO, ModelState.FAILED, message="torn"))
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    [change] = await house.models.all("n")
    assert (change.state, change.message) == (ModelState.FAILED, "torn")


async def test_a_dead_database_makes_it_unhealthy_until_it_answers() -> None:
    house = House()
    original = house.models.apply

    async def fail(*_: object) -> None:
        raise DatabaseUnavailable("gone")

    house.models.apply = fail  # type: ignore[method-assign, assignment]
    house.tracker.observe(ModelStateChange(ModelRef("scripted", "x"), ModelState.LOADING))
    await house.tracker.write_last()
    assert not house.tracker.healthy
    house.models.apply = original  # type: ignore[method-assign]
    await house.tracker.write_last()
    assert house.tracker.healthy


async def test_the_feed_is_told_even_while_the_database_is_away() -> None:
    house = House()

    async def fail(*_: object) -> None:
        raise DatabaseUnavailable("gone")

    house.providers.put = fail  # type: ignore[method-assign, assignment]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(house.tracker.run)
        await anyio.wait_all_tasks_blocked()
        assert [state.state for state in house.feed.states()] == [ModelState.LOADED]
        house.tracker.observe(ModelStateChange(ECHO, ModelState.UNLOADING))
        assert [state.state for state in house.feed.states()] == [ModelState.UNLOADING]
        tasks.cancel_scope.cancel()
    assert not house.tracker.healthy


async def test_it_looks_again_when_it_is_told_to() -> None:
    house = House()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(house.tracker.run)
        await anyio.wait_all_tasks_blocked()
        house.provider.listed = [ModelInfo(ECHO, state=ModelState.NOT_LOADED)]
        house.tracker.look_again()
        await anyio.wait_all_tasks_blocked()
        assert await house.states() == {"scripted/echo": ModelState.NOT_LOADED}
        house.tracker.observe(ModelStateChange(ECHO, ModelState.LOADING))
        await anyio.wait_all_tasks_blocked()
        assert await house.states() == {"scripted/echo": ModelState.LOADING}
        tasks.cancel_scope.cancel()


async def test_what_an_earlier_run_left_is_repaired_counted_and_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    house = House()
    house.provider.listed = [ModelInfo(ECHO)]
    gone = ModelRef("scripted", "gone")
    left = [ModelStateChange(ECHO, ModelState.LOADED), ModelStateChange(gone, ModelState.LOADING)]
    await house.models.apply("n", left, 1.0)
    await house.tracker.reconcile()
    assert await house.states() == {"scripted/echo": ModelState.NOT_LOADED}
    assert house.tracker.drift == {
        ("scripted", "LOADED", "NOT_LOADED"): 1,
        ("scripted", "LOADING", "NOT_LOADED"): 1,
    }
    [told] = [record.getMessage() for record in caplog.records if "repaired" in record.message]
    assert "scripted/echo was recorded as LOADED and is NOT_LOADED" in told
    await house.tracker.reconcile()
    assert house.tracker.drift.total() == 2


async def test_a_transition_that_was_recorded_is_no_drift() -> None:
    house = House()
    house.provider.listed = [ModelInfo(ECHO)]
    await house.tracker.reconcile()
    house.tracker.observe(ModelStateChange(ECHO, ModelState.LOADING))
    house.provider.listed = [ModelInfo(ECHO, state=ModelState.LOADING)]
    await house.tracker.reconcile()
    assert not house.tracker.drift


async def test_transitions_lost_with_the_database_are_drift_once_it_is_back() -> None:
    house = House()
    house.provider.listed = [ModelInfo(ECHO)]
    await house.tracker.reconcile()
    original = house.models.apply

    async def fail(*_: object) -> None:
        raise DatabaseUnavailable("gone")

    house.models.apply = fail  # type: ignore[method-assign, assignment]
    house.tracker.observe(ModelStateChange(ECHO, ModelState.LOADED))
    await house.tracker.write_last()
    house.models.apply = original  # type: ignore[method-assign]
    house.provider.listed = [ModelInfo(ECHO, state=ModelState.LOADED)]
    await house.tracker.reconcile()
    assert house.tracker.drift == {("scripted", "NOT_LOADED", "LOADED"): 1}


async def test_a_transition_during_the_look_is_newer_than_what_was_seen() -> None:
    """It neither is undone by the older listing nor counts as drift."""
    house = House()
    house.provider.listed = [ModelInfo(ECHO)]
    await house.tracker.reconcile()
    put = house.providers.put

    async def put_late(*arguments: Any) -> None:
        await put(*arguments)
        house.tracker.observe(ModelStateChange(ECHO, ModelState.LOADING))

    house.providers.put = put_late  # type: ignore[method-assign]
    reconcile = house.models.reconcile

    async def reconcile_late(*arguments: Any) -> Any:
        drift = await reconcile(*arguments)
        house.tracker.observe(ModelStateChange(ECHO, ModelState.LOADED))
        return drift

    house.models.reconcile = reconcile_late  # type: ignore[method-assign]
    await house.tracker.reconcile()
    assert await house.states() == {"scripted/echo": ModelState.LOADING}
    await house.tracker.write_changes()
    assert await house.states() == {"scripted/echo": ModelState.LOADED}
    assert not house.tracker.drift
