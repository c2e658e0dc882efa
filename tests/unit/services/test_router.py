"""ModelRouterService over scripted providers: what is said of names that lead nowhere."""

import pytest

from gateway.core.errors import ModelNotFound, ProviderUnavailable
from gateway.core.events import Routed
from gateway.core.messages import GenerateRequest, Message
from gateway.core.models import ModelInfo
from gateway.core.names import ModelRef
from gateway.services.catalog import Catalog
from gateway.services.images import ImagePolicy
from gateway.services.router import ModelRouterService
from tests.scripted_provider import ScriptedProvider, answer
from tests.told import events_of

AWAY = ProviderUnavailable("ollama", "Ollama cannot be reached.")


def router_of(*providers: ScriptedProvider) -> ModelRouterService:
    named = {provider.name: provider for provider in providers}
    catalog = Catalog(named, timeout_s=1, ttl_s=0)
    return ModelRouterService(named, catalog, aliases={}, images=ImagePolicy(1, 1))


def ask(model: str) -> GenerateRequest:
    return GenerateRequest(id="r", model=model, messages=(Message.user("hi"),))


async def test_generate_is_the_stream_collected() -> None:
    router = router_of(ScriptedProvider(answer("a", "b")))
    assert (await router.generate(ask("scripted/echo"))).text == "ab"


async def test_the_choice_comes_before_anything_the_provider_says() -> None:
    router = router_of(ScriptedProvider(answer("a")))
    events = events_of(lambda tell: router.answer(ask("echo"), tell))
    assert await anext(events) == Routed(ModelRef("scripted", "echo"))
    await events.aclose()


async def test_a_guess_at_a_provider_that_is_away_says_that_it_was_a_guess() -> None:
    away = ScriptedProvider([AWAY], name="ollama")
    away.listing_error = AWAY
    router = router_of(away)
    with pytest.raises(ProviderUnavailable, match="No model 'gpt-4o' is known here"):
        await router.generate(ask("gpt-4o"))
    with pytest.raises(ProviderUnavailable, match=r"^Ollama cannot be reached"):
        await router.generate(ask("ollama/gpt-4o"))


async def test_an_unknown_name_is_told_in_the_caller_s_words_with_the_nearest() -> None:
    hub = ScriptedProvider([ModelNotFound("huggingface/ollma/demo")], name="huggingface")
    ollama = ScriptedProvider(name="ollama")
    ollama.listed = [ModelInfo(ModelRef("ollama", "demo:latest"))]
    with pytest.raises(ModelNotFound, match="'ollma/demo'") as caught:
        await router_of(hub, ollama).generate(ask("ollma/demo"))
    assert caught.value.nearest == ("ollama/demo:latest",)


async def test_a_model_that_came_since_the_last_look_is_found() -> None:
    provider = ScriptedProvider(answer("a"))
    provider.listed = []
    router = router_of(provider)
    with pytest.raises(ModelNotFound):
        await router.generate(ask("echo"))
    provider.listed = [ModelInfo(ModelRef("scripted", "echo"))]
    assert (await router.generate(ask("echo"))).text == "a"
