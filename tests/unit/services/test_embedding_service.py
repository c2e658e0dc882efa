"""EmbeddingService over a scripted provider: who is let in, and how a drain ends."""

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from gateway.core.embeddings import EmbedRequest
from gateway.core.errors import GatewayError, ModelNotFound, Overloaded, ShuttingDown
from gateway.services.catalog import Catalog
from gateway.services.embeddings import EmbeddingService
from gateway.services.images import ImagePolicy
from gateway.services.router import ModelRouterService
from tests.scripted_provider import ScriptedProvider

ASK = EmbedRequest("r", "scripted/echo", ("hello",))


def service_of(provider: ScriptedProvider, max_open: int = 10) -> EmbeddingService:
    named = {provider.name: provider}
    catalog = Catalog(named, timeout_s=1, ttl_s=0)
    router = ModelRouterService(named, catalog, aliases={}, images=ImagePolicy(1, 1))
    return EmbeddingService(router, max_open=max_open)


async def fails(call: Callable[..., Any], *arguments: object) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        await call(*arguments)
    return caught.value


async def test_only_so_many_are_open_at_once() -> None:
    provider = ScriptedProvider()
    provider.embed_gate = anyio.Event()
    service = service_of(provider, max_open=1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(service.embed, ASK)
        await provider.opened.wait()
        assert isinstance(await fails(service.embed, ASK), Overloaded)
        provider.embed_gate.set()
    assert (await service.embed(ASK)).usage.prompt_tokens == 7


async def test_a_failed_request_gives_its_place_back() -> None:
    provider = ScriptedProvider()
    service = service_of(provider, max_open=1)
    provider.embed_error = Overloaded("full")
    await fails(service.embed, ASK)
    provider.embed_error = None
    assert len((await service.embed(ASK)).vectors) == 1


async def test_a_drain_lets_the_running_finish_and_nobody_in() -> None:
    provider = ScriptedProvider()
    provider.embed_gate = anyio.Event()
    service = service_of(provider)
    sizes: list[int] = []

    async def ask() -> None:
        sizes.append(len((await service.embed(ASK)).vectors))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        await provider.opened.wait()
        tasks.start_soon(service.drain, 60)
        await anyio.wait_all_tasks_blocked()
        assert isinstance(await fails(service.embed, ASK), ShuttingDown)
        provider.embed_gate.set()
    assert sizes == [1]


async def test_a_drain_without_patience_ends_the_running() -> None:
    provider = ScriptedProvider()
    provider.embed_gate = anyio.Event()
    service = service_of(provider)
    errors: list[GatewayError] = []

    async def ask() -> None:
        errors.append(await fails(service.embed, ASK))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        await provider.opened.wait()
        await service.drain(0)
    assert isinstance(errors[0], ShuttingDown)
    assert provider.closed.is_set()


async def test_an_unknown_model_is_named_in_the_caller_s_own_words() -> None:
    provider = ScriptedProvider()
    provider.embed_error = ModelNotFound("something else")
    error = await fails(service_of(provider).embed, EmbedRequest("r", "scripted/ecko", ("a",)))
    assert isinstance(error, ModelNotFound)
    assert (error.name, error.nearest) == ("scripted/ecko", ("scripted/echo",))
