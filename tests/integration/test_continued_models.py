"""Real models of unlike providers that make one answer: exact where they are the same one."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import anyio
import pytest
from msgspec.structs import replace

from gateway.core.errors import IncompleteStream
from gateway.core.events import Delta, Event, Finished, Generation, Started
from gateway.core.messages import GenerateRequest, Message, Options
from gateway.core.models import ModelInfo
from gateway.core.names import ModelRef
from gateway.core.virtual import Candidate, VirtualModel
from gateway.demo import MODEL_PATH
from gateway.hub.cache import FileLibrary
from gateway.providers import ProviderContext, load
from gateway.providers.huggingface import HuggingFaceService
from gateway.providers.ollama import OllamaService, OllamaTimeouts
from gateway.services.catalog import Catalog
from gateway.services.images import ImagePolicy
from gateway.services.router import ModelRouterService
from gateway.settings import Settings
from tests.integration.ollama_peer import Do, OllamaPeer, chat_line, chunks
from tests.scripted_provider import Uncontrolled
from tests.told import stream_of

DEMO = ModelRef("huggingface", "demo")
QUESTION = "What is a gateway?"


class Chaos(Uncontrolled):
    """The same models under another name; each stream breaks after so many deltas. It tells no
    tokens: who goes on has the text alone."""

    name = "chaos"

    def __init__(self, service: HuggingFaceService) -> None:
        self._service = service
        self.place = 0

    async def models(self) -> Sequence[ModelInfo]:
        return [ModelInfo(ModelRef("chaos", "demo"))]

    def continues(self, request: GenerateRequest, ref: ModelRef) -> bool:
        return True

    async def stream(self, request: GenerateRequest, ref: ModelRef) -> AsyncGenerator[Event, None]:
        deltas = 0
        async with aclosing(stream_of(self._service, request, DEMO)) as events:
            async for event in events:
                if deltas == self.place and isinstance(event, Delta | Finished):
                    raise IncompleteStream("chaos", "It broke.")
                deltas += isinstance(event, Delta)
                if isinstance(event, Started):
                    event = replace(event, ref=ref)
                yield replace(event, ids=()) if isinstance(event, Delta) else event

    async def embed(self, request: object, ref: ModelRef) -> object:
        raise NotImplementedError

    async def resident(self) -> Sequence[object]:
        return []

    async def aclose(self) -> None:
        pass


class House:
    def __init__(self, router: ModelRouterService, chaos: Chaos) -> None:
        self.router = router
        self.chaos = chaos

    async def ask(self, model: str, **fields: object) -> Generation:
        options = Options(temperature=0.0, **fields)  # type: ignore[arg-type]
        request = GenerateRequest(
            id="r",
            model=model,
            messages=(Message.user(QUESTION),),
            options=options,
            continue_on_failure=True,
        )
        return await self.router.generate(request)


@pytest.fixture
async def house(tmp_path: Path, ollama_peer: OllamaPeer) -> AsyncIterator[House]:
    async with _opened(tmp_path, ollama_peer) as opened:
        yield opened


@asynccontextmanager
async def _opened(folder: Path, peer: OllamaPeer) -> AsyncIterator[House]:
    async with anyio.create_task_group() as tasks:
        context = ProviderContext(
            library=FileLibrary(folder / "models", folder / "hub", {"demo": MODEL_PATH}),
            observe=lambda change: None,
            task_group=tasks,
            clock=anyio.current_time,
        )
        service = load("huggingface")(Settings(hf_device="cpu"), context)
        assert isinstance(service, HuggingFaceService)
        chaos = Chaos(service)
        ollama = OllamaService(peer.url, OllamaTimeouts(control_s=5.0))
        providers = {"chaos": chaos, "huggingface": service, "ollama": ollama}
        rules = {
            "twins": _rule("twins", "chaos/demo", "huggingface/demo"),
            "unlike": _rule("unlike", "ollama/llama3.2", "huggingface/demo"),
        }
        router = ModelRouterService(
            providers,  # type: ignore[arg-type]
            Catalog(providers, timeout_s=5, ttl_s=60),  # type: ignore[arg-type]
            aliases={},
            images=ImagePolicy(1, 1),
            rules=rules,
        )
        yield House(router, chaos)
        await ollama.aclose()
        await service.aclose()


def _rule(name: str, *models: str) -> VirtualModel:
    return VirtualModel(name, tuple(map(Candidate, models)))


async def test_two_greedy_copies_of_a_model_join_byte_for_byte_at_every_place(
    house: House,
) -> None:
    whole = await house.ask("huggingface/demo")
    count = whole.usage.completion_tokens
    assert count > 20 and whole.finish_reason == "stop"
    for place in range(count + 1):
        house.chaos.place = place
        joined = await house.ask("twins")
        assert joined.text == whole.text, f"cut after {place} of {count}"
        assert joined.finish_reason == "stop"
        assert len(joined.switches) == 1
        assert joined.usage.completion_tokens == count


async def test_a_stop_string_is_found_wherever_the_joint_is(house: House) -> None:
    whole = await house.ask("huggingface/demo")
    # It begins where a token does: else the one that goes on would have half a token to go on from.
    at = whole.text.index(" ", 20)
    stop = whole.text[at : at + 12]
    for place in range(30):
        house.chaos.place = place
        joined = await house.ask("twins", stop=(stop,))
        # What the first one held back is lost with it; what it told before the stop is told.
        assert joined.text == whole.text[:at], f"cut after {place}"
        assert joined.finish_reason == "stop"


async def test_the_most_tokens_hold_for_the_whole(house: House) -> None:
    whole = await house.ask("huggingface/demo", max_tokens=20)
    for place in range(21):
        house.chaos.place = place
        joined = await house.ask("twins", max_tokens=20)
        assert (joined.text, joined.finish_reason) == (whole.text, "length"), f"after {place}"
        assert joined.usage.completion_tokens == 20


async def test_a_model_here_goes_on_for_one_of_ollama(
    house: House, ollama_peer: OllamaPeer
) -> None:
    whole = await house.ask("huggingface/demo")
    begun = whole.text[: whole.text.index(" ", 20)]
    lines = [chat_line(begun[:9]), chat_line(begun[9:])]
    ollama_peer.script("llama3.2", chunks([*lines, Do.RESET]))
    joined = await house.ask("unlike")
    assert joined.text == whole.text
    assert joined.ref == DEMO
