"""openai-python and langchain-openai against models in this process and an Ollama server."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import openai
import pytest
import tiktoken
from langchain_openai import OpenAIEmbeddings
from openai import AsyncOpenAI
from pydantic import SecretStr
from torch import Tensor, tensor
from torch.testing import assert_close

from gateway.hub.cache import FileLibrary
from gateway.providers import ProviderContext, load
from gateway.settings import Settings
from tests.integration.http.serving import Served, serving
from tests.integration.ollama_peer import OllamaPeer
from tests.tiny_models import build_encoder, build_model, module, write_modules

TEXTS = ["a gateway embeds texts", "nothing else"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bert`, an encoder; `last`, a decoder that pools its last token; `chat`, one that talks."""
    folder = tmp_path_factory.mktemp("models")
    build_encoder(folder / "bert", max_seq_length=16, pooling={"pooling_mode_cls_token": True})
    steps = (("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))
    modules = [module(index, kind, path) for index, (kind, path) in enumerate(steps)]
    last = build_model(folder / "last", family="qwen3", head_dim=8, chat=False)
    write_modules(last, modules=modules, pooling={"pooling_mode_lasttoken": True})
    build_model(folder / "chat")
    return folder


@asynccontextmanager
async def house(models: Path, **settings: Any) -> AsyncIterator[tuple[AsyncOpenAI, Served]]:
    """The gateway with its two real providers, and a client for it."""
    async with OllamaPeer() as peer, anyio.create_task_group() as tasks:
        peer.add_model("nomic-embed-text", capabilities=["embedding"], context_length=8)
        peer.add_model("llama3.2")
        chosen = Settings(hf_device="cpu", ollama_host=peer.url, **settings)
        context = ProviderContext(
            library=FileLibrary(models, models / "hub"),
            observe=lambda change: None,
            task_group=tasks,
            clock=anyio.current_time,
        )
        providers: list[Any] = [load(kind)(chosen, context) for kind in chosen.providers]
        try:
            async with (
                serving(*providers) as served,
                AsyncOpenAI(base_url=f"{served.url}/v1", api_key="any", max_retries=0) as client,
            ):
                yield client, served
        finally:
            for provider in providers:
                await provider.aclose()


async def native(served: Served, model: str, inputs: object, **fields: object) -> Tensor:
    asked = {"model": model, "input": inputs, **fields}
    reply = await served.client.post("/api/v1/embed", json=asked)
    assert reply.status_code == 200, reply.text
    return tensor(reply.json()["embeddings"])


@pytest.mark.parametrize("model", ["bert", "huggingface/last", "ollama/nomic-embed-text"])
async def test_openai_python_gets_the_same_numbers_in_either_encoding(
    model: str, models: Path
) -> None:
    async with house(models) as (client, served):
        encoded = await client.embeddings.create(model=model, input=TEXTS)
        plain = await client.embeddings.create(model=model, input=TEXTS, encoding_format="float")
        short = await client.embeddings.create(model=model, input=TEXTS[0], dimensions=2)
        expected = await native(served, model, TEXTS)
    for found in (encoded, plain):
        assert_close(tensor([item.embedding for item in found.data]), expected)
        assert [item.index for item in found.data] == [0, 1]
        assert found.usage.prompt_tokens == found.usage.total_tokens > 0
    head = expected[0][:2]
    assert_close(tensor(short.data[0].embedding), head / head.norm())


async def test_the_models_that_embed_are_listed_as_such_and_only_they_are_asked(
    models: Path,
) -> None:
    async with house(models) as (client, served):
        listing = (await served.client.get("/api/v1/models?capability=embedding")).json()
        refused = []
        for model in ("huggingface/chat", "ollama/llama3.2"):
            with pytest.raises(openai.BadRequestError) as caught:
                await client.embeddings.create(model=model, input="a")
            refused.append(caught.value.code)
        with pytest.raises(openai.BadRequestError, match="does not generate text"):
            await client.completions.create(model="huggingface/last", prompt="a")
    found = {model["id"]: model for model in listing["models"]}
    assert set(found) == {
        "huggingface/bert",
        "huggingface/last",
        "ollama/nomic-embed-text:latest",
    }
    assert found["huggingface/bert"]["capabilities"] == ["embedding"]
    assert found["huggingface/bert"]["context_length"] == 16
    assert refused == ["unsupported_capability"] * 2


@pytest.mark.parametrize("model", ["huggingface/bert", "ollama/nomic-embed-text"])
async def test_too_long_a_text_is_an_error_and_is_cut_only_where_that_is_asked_for(
    model: str, models: Path
) -> None:
    async with house(models) as (client, served):
        with pytest.raises(openai.BadRequestError) as caught:
            await client.embeddings.create(model=model, input="texts " * 20)
        assert caught.value.code == "context_length_exceeded"
        assert (await native(served, model, "texts " * 20, truncate=True)).shape[0] == 1


async def test_models_of_both_kinds_share_the_places_in_memory(models: Path) -> None:
    async with house(models, hf_max_models=1) as (client, served):
        await native(served, "bert", "a")
        await client.completions.create(model="huggingface/chat", prompt="a", max_tokens=1)
        states = await _states(served)
        assert states == {"huggingface/bert": "NOT_LOADED", "huggingface/chat": "LOADED"}
        await native(served, "bert", "a", keep_alive=0)
        assert (await _states(served))["huggingface/chat"] == "NOT_LOADED"


async def _states(served: Served) -> dict[str, str]:
    listing = (await served.client.get("/api/v1/models?provider=huggingface")).json()
    states = {model["id"]: model["state"] for model in listing["models"]}
    del states["huggingface/last"]
    return states


@asynccontextmanager
async def langchain(served: Served, model: str, **fields: Any) -> AsyncIterator[OpenAIEmbeddings]:
    with httpx2.Client() as sync_client:
        async with httpx2.AsyncClient() as client:
            yield OpenAIEmbeddings(
                model=model,
                base_url=f"{served.url}/v1",
                api_key=SecretStr("any"),
                max_retries=0,
                http_client=sync_client,
                http_async_client=client,
                **fields,
            )


async def test_langchain_sends_texts_when_told_to(models: Path) -> None:
    async with house(models) as (_, served):
        expected = await native(served, "bert", TEXTS)
        async with langchain(
            served, "huggingface/bert", check_embedding_ctx_length=False
        ) as embeddings:
            documents = await embeddings.aembed_documents(TEXTS)
            query = await embeddings.aembed_query(TEXTS[1])
    assert_close(tensor(documents), expected)
    assert_close(tensor(query), expected[1], rtol=1e-4, atol=1e-5)


@pytest.fixture
def byte_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """tiktoken's default encoding, with the 256 bytes as its only tokens: it is not on PyPI."""
    encoding = tiktoken.Encoding(
        "cl100k_base",
        pat_str=r".",
        mergeable_ranks={bytes([byte]): byte for byte in range(256)},
        special_tokens={},
    )
    monkeypatch.setitem(tiktoken.registry.ENCODINGS, "cl100k_base", encoding)


@pytest.mark.usefixtures("byte_encoding")
async def test_langchain_s_token_ids_are_taken_for_the_model_s_own(models: Path) -> None:
    async with house(models) as (_, served):
        async with langchain(served, "huggingface/last") as embeddings:
            [found] = await embeddings.aembed_documents(["hello"])
        async with langchain(served, "huggingface/bert") as embeddings:
            with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
                await embeddings.aembed_documents(["hello"])
        [expected] = await native(served, "last", list(b"hello"))
    assert_close(tensor(found), expected)
