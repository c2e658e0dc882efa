"""The OpenAI provider against real servers of other makers, with a tiny model.

Opt-in: `make test-peers` installs them once, as the benchmarks do. TRANSFORMERS_PYTHON and
LLAMA_CPP_PYTHON name a Python that has them instead.
"""

import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager, suppress
from pathlib import Path

import anyio
import openai
import pytest

from bench.environments import ensure_environment
from gateway.core.errors import GatewayError, ProviderRejected
from gateway.core.events import Event, Finished, Started, TextDelta
from gateway.core.messages import GenerateRequest, Message, Options
from gateway.core.names import ModelRef
from gateway.providers.openai import OpenAIService
from gateway.servers import OpenAIServer
from tests.integration.http.serving import serving
from tests.tiny_models import build_model
from tests.told import stream_of

pytestmark = pytest.mark.peers

START_S = 300.0
CONTEXT = 256


class Peer:
    """A running server, and the name of its model."""

    def __init__(self, kind: str, url: str, model: str) -> None:
        self.kind = kind
        self.url = url
        self.ref = ModelRef("lab", model)

    def service(self) -> OpenAIService:
        return OpenAIService("lab", OpenAIServer(urls=(self.url,), control_timeout_s=5.0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("peers")


@pytest.fixture(scope="module", params=["transformers", "llama-cpp-server"])
def peer(request: pytest.FixtureRequest, folder: Path) -> Iterator[Peer]:
    """Each of the servers in turn, with its tiny model."""
    kind: str = request.param
    start = {"transformers": _transformers, "llama-cpp-server": _llama_cpp}[kind]
    with start(folder) as running:
        anyio.run(_wait_until_it_lists, running)
        yield running


@contextmanager
def _transformers(folder: Path) -> Iterator[Peer]:
    python = _python("TRANSFORMERS_PYTHON", "transformers")
    # A cache of the Hub, as a download would leave it.
    repository = folder / "hub" / "models--lab--tiny"
    snapshot = repository / "snapshots" / ("0" * 40)
    build_model(snapshot, max_position_embeddings=CONTEXT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    port = _free_port()
    command = [str(python.parent / "transformers"), "serve", "--port", str(port), "--device", "cpu"]
    environment = {"HF_HUB_CACHE": str(folder / "hub"), "HF_HUB_OFFLINE": "1"}
    with _running(command, environment, folder / "transformers.log"):
        yield Peer("transformers", f"http://127.0.0.1:{port}", "lab/tiny")


@contextmanager
def _llama_cpp(folder: Path) -> Iterator[Peer]:
    python = _python("LLAMA_CPP_PYTHON", "llama-cpp-server")
    model = build_model(folder / "tiny", max_position_embeddings=CONTEXT)
    file = folder / "tiny.gguf"
    write = (
        "import sys; from pathlib import Path; from tests.tiny_gguf import build_gguf; "
        "build_gguf(Path(sys.argv[2]), Path(sys.argv[1]))"
    )
    subprocess.run([str(python), "-c", write, str(model), str(file)], check=True)
    port = _free_port()
    options = {"model": file, "model_alias": "tiny", "n_ctx": CONTEXT, "port": port}
    command = [str(python), "-m", "llama_cpp.server"]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    with _running(command, {}, folder / "llama.log"):
        yield Peer("llama-cpp-server", f"http://127.0.0.1:{port}", "tiny")


def _python(variable: str, name: str) -> Path:
    given = os.environ.get(variable)
    return Path(given) if given else ensure_environment(name) / "python"


@contextmanager
def _running(command: list[str], extra: dict[str, str], log: Path) -> Iterator[None]:
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=os.environ | extra, stdout=file, stderr=file)
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            sys.stderr.write(log.read_text(errors="replace"))  # shown when a test failed


async def _wait_until_it_lists(peer: Peer) -> None:
    service = peer.service()
    try:
        with anyio.fail_after(START_S):
            while True:
                with suppress(GatewayError):
                    if peer.ref in [info.ref for info in await service.models()]:
                        return
                await anyio.sleep(0.25)  # a server of another maker gives no sign
    finally:
        await service.aclose()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


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
