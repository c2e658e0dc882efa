"""Answers that break at a real server of another maker, and go on there or in this process.

Opt-in: `make test-peers`. The model is the built-in demo model: its answers are text.
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
import pytest
from safetensors.torch import load_file, save_file

from gateway.core.errors import IncompleteStream, ProviderRejected
from gateway.core.events import Generation
from gateway.core.messages import GenerateRequest, Message, Options
from gateway.core.models import ModelInfo
from gateway.core.names import ModelRef
from gateway.core.virtual import Candidate, VirtualModel
from gateway.demo import MODEL_PATH
from gateway.hub.cache import FileLibrary
from gateway.providers import ProviderContext, load
from gateway.providers.openai import OpenAIService
from gateway.servers import Continuation, OpenAIServer
from gateway.services.catalog import Catalog
from gateway.services.images import ImagePolicy
from gateway.services.router import ModelRouterService
from gateway.settings import Settings
from tests.integration.http.chaos_proxy import ChaosProxy
from tests.integration.providers.foreign_servers import STARTERS, Peer, wait_until_it_lists

pytestmark = [pytest.mark.peers, pytest.mark.timeout(600)]

QUESTION = "What is a gateway?"
TEXT = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
"""What the model was trained on: its text is spelled in the same tokens again."""
HERE = "huggingface/demo"
STEPS = 16
"""Into how many parts an answer's bytes are cut."""
CONTINUES: tuple[Continuation, ...] = ("assistant", "continue_final_message", "prefix")


class Places(Iterator[int]):
    """After how many bytes of its reply the next connection is cut."""

    def __init__(self) -> None:
        self.next = 0

    def __next__(self) -> int:
        return self.next


class Breaking(OpenAIService):
    """The peer behind a proxy; it is not asked for a listing, which would be cut as well."""

    def __init__(self, url: str, model: str) -> None:
        super().__init__("cut", OpenAIServer(urls=(url,)))
        self._ref = ModelRef("cut", model)

    async def models(self) -> Sequence[ModelInfo]:
        return [ModelInfo(self._ref)]


class House:
    def __init__(self, router: ModelRouterService, places: Places, peer: Peer) -> None:
        self.router = router
        self.places = places
        self.peer = peer

    async def ask(self, model: str, *, raw: bool) -> Generation:
        fields = {"prompt": TEXT} if raw else {"messages": (Message.user(QUESTION),)}
        request = GenerateRequest(
            id="r",
            model=model,
            raw=raw,
            options=Options(temperature=0.0, max_tokens=60),
            continue_on_failure=True,
            **fields,  # type: ignore[arg-type]
        )
        return await self.router.generate(request)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model in 32 bits: what each engine rounds must not decide what is said."""
    folder = tmp_path_factory.mktemp("demo")
    for file in MODEL_PATH.iterdir():
        (folder / file.name).write_bytes(file.read_bytes().replace(b'"bfloat16"', b'"float32"'))
    weights = load_file(MODEL_PATH / "model.safetensors")
    whole = {name: tensor.float() for name, tensor in weights.items()}
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module", params=list(STARTERS))
def peer(
    request: pytest.FixtureRequest, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Peer]:
    with STARTERS[request.param](tmp_path_factory.mktemp("peer"), model) as running:
        anyio.run(wait_until_it_lists, running)
        yield running


@asynccontextmanager
async def house_of(
    peer: Peer, model: Path, folder: Path, continues: Continuation = "no"
) -> AsyncIterator[House]:
    places = Places()
    port = int(peer.url.rpartition(":")[2])
    async with (
        ChaosProxy(port, places).running() as proxy,
        anyio.create_task_group() as tasks,
        AsyncExitStack() as stack,
    ):
        context = ProviderContext(
            library=FileLibrary(folder / "models", folder / "hub", {"demo": model}),
            observe=lambda change: None,
            task_group=tasks,
            clock=anyio.current_time,
        )
        here = load("huggingface")(Settings(hf_device="cpu"), context)
        there = OpenAIService("lab", OpenAIServer(urls=(peer.url,), continues=continues))
        providers = {"cut": Breaking(proxy.url, peer.ref.model), "lab": there, "huggingface": here}
        for each in providers.values():
            stack.push_async_callback(each.aclose)  # type: ignore[attr-defined]
        cut, lab = f"cut/{peer.ref.model}", str(peer.ref)
        rules = {
            name: VirtualModel(name, tuple(map(Candidate, (cut, other))))
            for name, other in (("there", lab), ("here", HERE))
        }
        router = ModelRouterService(
            providers,  # type: ignore[arg-type]
            Catalog(providers, timeout_s=20, ttl_s=600),  # type: ignore[arg-type]
            aliases={},
            images=ImagePolicy(1, 1),
            rules=rules,
        )
        yield House(router, places, peer)


async def length_of(house: House, *, raw: bool) -> int:
    """Return after how many bytes of its reply the server says an answer whole."""
    low, high = 0, 2**17
    while high - low > 200:
        house.places.next = middle = (low + high) // 2
        try:
            await house.ask(f"cut/{house.peer.ref.model}", raw=raw)
        except IncompleteStream:
            low = middle
        else:
            high = middle
    return high


async def test_a_text_goes_on_at_the_same_server_byte_for_byte(
    peer: Peer, model: Path, tmp_path: Path
) -> None:
    """What was said is put behind the prompt: that needs nothing of a server."""
    async with house_of(peer, model, tmp_path) as house:
        whole = await house.ask(str(peer.ref), raw=True)
        assert len(whole.text) > 50
        length = await length_of(house, raw=True)
        switches = 0
        for step in range(STEPS):
            house.places.next = length * step // STEPS
            joined = await house.ask("there", raw=True)
            assert joined.text == whole.text, f"cut after {house.places.next} of {length} bytes"
            switches += len(joined.switches)
        assert switches, "no cut was after the first word"


async def test_a_chat_goes_on_in_this_process_as_it_would_have_there(
    peer: Peer, model: Path, tmp_path: Path
) -> None:
    async with house_of(peer, model, tmp_path) as house:
        whole = await house.ask(str(peer.ref), raw=False)
        assert whole.finish_reason == "stop"
        length = await length_of(house, raw=False)
        switches = 0
        for step in range(STEPS):
            house.places.next = length * step // STEPS
            joined = await house.ask("here", raw=False)
            assert joined.text == whole.text, f"cut after {house.places.next} of {length} bytes"
            switches += len(joined.switches)
        assert switches, "no cut was after the first word"


async def test_a_chat_does_not_go_on_at_a_server_that_closes_every_message(
    peer: Peer, model: Path, tmp_path: Path
) -> None:
    """Neither takes an open message: as the document says, `continues` stays off for them."""
    async with house_of(peer, model, tmp_path) as house:
        length = await length_of(house, raw=False)
        house.places.next = length * 2 // 3
        with pytest.raises(IncompleteStream):
            await house.ask("there", raw=False)
    refused = set()
    for continues in CONTINUES:
        async with house_of(peer, model, tmp_path, continues) as house:
            whole = await house.ask(str(peer.ref), raw=False)
            house.places.next = length * 2 // 3
            try:
                joined = await house.ask("there", raw=False)
            except ProviderRejected:
                refused.add(continues)
            else:
                assert len(joined.switches) == 1
                assert joined.text != whole.text, continues
    assert refused == ({"continue_final_message"} if peer.kind == "transformers" else set())
