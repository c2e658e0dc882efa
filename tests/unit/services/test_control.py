"""Loads that come while another is under way: each one's wishes reach the provider."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from msgspec.structs import replace

from gateway.core.errors import GatewayError, ProviderUnavailable, UnsupportedCapability
from gateway.core.loading import ConfigReport, LoadConfig, LoadPlan, ModelStatus
from gateway.core.models import ModelInfo
from gateway.core.names import ModelRef
from gateway.core.states import ModelState
from gateway.services.catalog import Catalog
from gateway.services.control import ModelControlService
from tests.scripted_provider import ScriptedProvider

ECHO = ModelRef("scripted", "echo")
Wishes = tuple[LoadConfig | None, bool | None, float | None]


class SlowProvider(ScriptedProvider):
    """Its loads take until `gate` is set, except int4, which it refuses at once."""

    def __init__(self) -> None:
        super().__init__()
        self.listed = [ModelInfo(ECHO)]
        self.gate = anyio.Event()
        self.wishes: list[Wishes] = []

    async def load(
        self,
        ref: ModelRef,
        config: LoadConfig | None = None,
        *,
        pinned: bool | None = None,
        keep_alive_s: float | None = None,
    ) -> None:
        self.wishes.append((config, pinned, keep_alive_s))
        if config is not None and config.quantization == "int4":
            raise UnsupportedCapability("No int4 here.")
        await self.gate.wait()


class LoadedProvider(SlowProvider):
    """Its model is in memory, in the way that no config says."""

    async def status(self, ref: ModelRef | None = None) -> list[ModelStatus]:
        return [ModelStatus(ECHO, ModelState.LOADED)]

    async def plan(self, ref: ModelRef, config: LoadConfig | None = None) -> LoadPlan:
        return replace(await super().plan(ref, config), already_loaded=config is None)


class AwayProvider(SlowProvider):
    AWAY = ProviderUnavailable("ollama", "Ollama cannot be reached.")

    def __init__(self) -> None:
        super().__init__()
        self.name = "ollama"

    async def plan(self, ref: ModelRef, config: LoadConfig | None = None) -> LoadPlan:
        raise self.AWAY

    async def config(self, ref: ModelRef) -> ConfigReport:
        raise self.AWAY


@asynccontextmanager
async def controlling(provider: SlowProvider) -> AsyncIterator[ModelControlService]:
    providers = {provider.name: provider}
    catalog = Catalog(providers, timeout_s=1, ttl_s=60)
    async with anyio.create_task_group() as tasks:
        yield ModelControlService(providers, catalog, tasks, aliases={})
        provider.gate.set()


async def test_what_a_second_load_wishes_is_not_lost() -> None:
    provider = SlowProvider()
    async with controlling(provider) as control:
        assert (await control.load("echo")).state is ModelState.LOADING
        other = LoadConfig(dtype="bfloat16")
        status = await control.load("echo", other, pinned=True, keep_alive_s=7)
        assert status.state is ModelState.LOADING
        await anyio.wait_all_tasks_blocked()
        assert provider.wishes == [(None, None, None), (other, True, 7)]


async def test_who_wishes_nothing_joins_the_load_that_is_under_way() -> None:
    provider = SlowProvider()
    ended: list[ModelStatus] = []

    async def wait(control: ModelControlService) -> None:
        ended.append(await control.load("echo", wait=True))

    async with controlling(provider) as control, anyio.create_task_group() as tasks:
        await control.load("echo", pinned=True)
        tasks.start_soon(wait, control)
        await anyio.wait_all_tasks_blocked()
        assert provider.wishes == [(None, True, None)] and not ended
        provider.gate.set()
    assert len(ended) == 1


async def test_a_load_that_is_refused_leaves_the_one_before_it_under_way() -> None:
    provider = SlowProvider()
    async with controlling(provider) as control:
        await control.load("echo")
        with pytest.raises(GatewayError, match="No int4"):
            await control.load("echo", LoadConfig(quantization="int4"), wait=True)
        [status] = await control.statuses()
        assert (status.state, status.error) == (ModelState.LOADING, None)
        provider.gate.set()
        await anyio.wait_all_tasks_blocked()
        # The one that went on went well: there is no failure to show.
        assert await control.statuses() == []


async def test_a_model_that_is_loaded_in_another_way_is_on_its_way_until_it_is_replaced() -> None:
    provider = LoadedProvider()
    async with controlling(provider) as control:
        assert (
            await control.load("echo", LoadConfig(dtype="bfloat16"))
        ).state is ModelState.LOADING
        [seen] = await control.statuses()
        assert seen.state is ModelState.LOADING
        provider.gate.set()
        await anyio.wait_all_tasks_blocked()
        [seen] = await control.statuses()
        assert seen.state is ModelState.LOADED
        # What is loaded as it should be is so at once.
        assert (await control.load("echo", pinned=True)).state is ModelState.LOADED


async def test_a_guess_at_a_provider_that_is_away_says_that_it_was_a_guess() -> None:
    provider = AwayProvider()
    provider.listing_error = AwayProvider.AWAY
    async with controlling(provider) as control:
        for ask in (control.load, control.plan, control.status, control.config):
            with pytest.raises(ProviderUnavailable, match="No model 'dem' is known here"):
                await ask("dem")
            with pytest.raises(ProviderUnavailable, match=r"^Ollama cannot be reached"):
                await ask("ollama/dem")
