"""The OpenAI provider against real servers of other makers, with a tiny model.

Opt-in: `make test-peers`.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import anyio
import openai
import pytest

from gateway.core.errors import GatewayError, ProviderRejected
from gateway.core.events import Event, Finished, Started, TextDelta
from gateway.core.messages import GenerateRequest, Message, Options
from gateway.core.names import ModelRef
from gateway.providers.openai import OpenAIService
from tests.integration.http.serving import serving
from tests.integration.providers.foreign_servers import STARTERS, Peer, wait_until_it_lists
from tests.tiny_models import build_model
from tests.told import stream_of

pytestmark = pytest.mark.peers

CONTEXT = 256


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("peers")


@pytest.fixture(scope="module", params=["transformers", "llama-cpp-server"])
def peer(request: pytest.FixtureRequest, folder: Path) -> Iterator[Peer]:
    """Each of the servers in turn, with its tiny model."""
    kind: str = request.param
    model = build_model(folder / kind, max_position_embeddings=CONTEXT)
    with STARTERS[kind](folder, model) as running:
        anyio.run(wait_until_it_lists, running)
        yield running


@pytest.fixture
async def service(peer: Peer) -> AsyncIterator[OpenAIService]:
    service = peer.service()
    await service.models()
    yield service
    await service.aclose()


def ask(text: str = "Hello", *, max_tokens: int = 8, raw: bool = False) -> GenerateRequest:
    options = Options(max_tokens=max_tokens, temperature=0.0)
    if raw:
        return GenerateRequest(id="r", model="x", prompt=text, raw=True, options=options)
    return GenerateRequest(id="r", model="x", messages=(Message.user(text),), options=options)


async def read(service: OpenAIService, request: GenerateRequest, ref: ModelRef) -> list[Event]:
    async with aclosing(stream_of(service, request, ref)) as events:
        return [event async for event in events]


async def test_a_chat_streams_to_its_limit(peer: Peer, service: OpenAIService) -> None:
    started, *deltas, finished = await read(service, ask(), peer.ref)
    assert started == Started(peer.ref)
    assert "".join(each.text for each in deltas if isinstance(each, TextDelta))
    assert isinstance(finished, Finished)
    assert finished.reason == "length"
    assert 1 <= finished.usage.completion_tokens <= 8
    if peer.kind == "transformers":
        assert finished.usage.completion_tokens == 8
        assert finished.usage.prompt_tokens > 5


async def test_the_same_question_has_the_same_answer(peer: Peer, service: OpenAIService) -> None:
    answers = [await read(service, ask(), peer.ref) for _ in range(2)]
    texts = ["".join(e.text for e in answer if isinstance(e, TextDelta)) for answer in answers]
    assert texts[0] == texts[1]


async def test_a_prompt_is_continued_as_it_stands(peer: Peer, service: OpenAIService) -> None:
    *_, finished = await read(service, ask("Once upon", raw=True), peer.ref)
    assert isinstance(finished, Finished)
    assert finished.reason == "length"


async def test_who_leaves_is_followed_by_the_next(peer: Peer, service: OpenAIService) -> None:
    async with aclosing(stream_of(service, ask(max_tokens=200), peer.ref)) as events:
        async for event in events:
            if isinstance(event, TextDelta):
                break
    *_, finished = await read(service, ask(), peer.ref)
    assert isinstance(finished, Finished)


async def test_an_option_that_a_server_refuses_is_a_sentence(
    peer: Peer, service: OpenAIService
) -> None:
    request = GenerateRequest(
        id="r", model="x", messages=(Message.user("a"),), options=Options(min_p=0.1, max_tokens=2)
    )
    if peer.kind == "transformers":
        with pytest.raises(ProviderRejected, match="min_p"):
            await read(service, request, peer.ref)
    else:
        assert isinstance((await read(service, request, peer.ref))[-1], Finished)


async def test_a_model_that_is_not_there_is_an_error(peer: Peer, service: OpenAIService) -> None:
    if peer.kind == "llama-cpp-server":
        pytest.skip("it answers for every name")
    with pytest.raises(GatewayError):
        await read(service, ask(), ModelRef("lab", "lab/other"))


async def test_a_prompt_that_is_too_long_is_an_error(peer: Peer, service: OpenAIService) -> None:
    if peer.kind == "transformers":
        pytest.skip("it looks at no length")
    with pytest.raises(GatewayError):
        await read(service, ask("word " * 200), peer.ref)


async def test_openais_client_speaks_to_it_through_the_gateway(
    peer: Peer, service: OpenAIService
) -> None:
    async with serving(service) as served:
        url = f"{served.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="x", max_retries=0) as client:
            listed = [model.id async for model in client.models.list()]
            assert str(peer.ref) in listed
            stream = await client.chat.completions.create(
                model=str(peer.ref),
                messages=[{"role": "user", "content": "Hello"}],
                max_tokens=6,
                stream=True,
            )
            chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices[0].finish_reason in ("length", "stop")
