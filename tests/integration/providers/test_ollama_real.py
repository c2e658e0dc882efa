"""Against a real Ollama server at OLLAMA_HOST, with its smallest model that can chat; opt-in."""

import os
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from gateway.core.errors import ModelNotFound
from gateway.core.events import Finished, Started
from gateway.core.messages import GenerateRequest, Options, ResponseFormat
from gateway.core.models import Capability
from gateway.core.names import ModelRef, parse_ref
from gateway.providers.ollama import OllamaService
from gateway.settings import parse_ollama_host
from tests.integration.providers.ollama_support import ask, say
from tests.told import collect, stream_of

pytestmark = [
    pytest.mark.ollama,
    pytest.mark.skipif(
        os.environ.get("GATEWAY_TEST_OLLAMA") != "1",
        reason="set GATEWAY_TEST_OLLAMA=1 (and OLLAMA_HOST) to use a real Ollama server",
    ),
]


@pytest.fixture
async def service() -> AsyncIterator[OllamaService]:
    provider = OllamaService(parse_ollama_host(os.environ.get("OLLAMA_HOST", "")))
    yield provider
    await provider.aclose()


@pytest.fixture
async def ref(service: OllamaService) -> ModelRef:
    infos = [info for info in await service.models() if Capability.CHAT in info.capabilities]
    if not infos:
        pytest.skip("the server has no model that can chat")
    return min(infos, key=lambda info: info.size_bytes or 0).ref


def short(**fields: object) -> GenerateRequest:
    return ask(options=Options(max_tokens=16, seed=1), **fields)


async def test_the_server_answers_a_version(service: OllamaService) -> None:
    assert (await service.version())[0].isdigit()


async def test_a_chat_has_a_start_text_and_an_end(service: OllamaService, ref: ModelRef) -> None:
    """T1"""
    async with aclosing(stream_of(service, short(), ref)) as stream:
        events = [event async for event in stream]
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Finished)
    assert 0 < events[-1].usage.completion_tokens <= 16
    assert ref in [resident.ref for resident in await service.resident()]


async def test_a_raw_prompt_is_continued(service: OllamaService, ref: ModelRef) -> None:
    """T1"""
    request = short(messages=(), prompt="One, two, three,", raw=True)
    assert (await collect(stream_of(service, request, ref))).text


async def test_a_format_is_followed(service: OllamaService, ref: ModelRef) -> None:
    """T16"""
    request = ask(
        messages=(say("user", "Answer in JSON."),),
        options=Options(max_tokens=64, seed=1),
        response_format=ResponseFormat("json_object"),
        think=None,
    )
    assert (await collect(stream_of(service, request, ref))).text.lstrip().startswith("{")


async def test_an_unknown_model_is_not_found(service: OllamaService) -> None:
    """T7"""
    with pytest.raises(ModelNotFound):
        await collect(stream_of(service, short(), parse_ref("ollama", "no-such-model-at-all")))


async def test_leaving_in_the_middle_leaves_the_server_usable(
    service: OllamaService, ref: ModelRef
) -> None:
    """T13"""
    async with aclosing(stream_of(service, ask("Count to a thousand."), ref)) as stream:
        await anext(stream)
    assert (await collect(stream_of(service, short(), ref))).ref == ref
