"""Tiny random models, built once, and engines over them."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gateway.core.loading import LoadConfig
from gateway.core.messages import GenerateRequest, Message, Options
from gateway.core.names import ModelRef
from gateway.engine.decoding.loaded import LoadedModel
from gateway.engine.engine import TransformersEngine
from gateway.engine.loading.loader import load_model
from tests.tiny_models import build_model
from tests.tiny_tokenizers import byte_tokenizer

if TYPE_CHECKING:
    from gateway.engine.weights.gemv import Gemv

StartEngine = Callable[..., AbstractAsyncContextManager[TransformersEngine]]


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "llama"
    return build_model(folder, max_position_embeddings=1024)


@pytest.fixture(scope="session")
def llama(llama_folder: Path) -> LoadedModel:
    return load_model("llama", llama_folder, LoadConfig(device="cpu"))


@pytest.fixture(scope="session")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A model whose template opens the reasoning itself."""
    template = "{{ messages[0].content }}{% if add_generation_prompt %}<think>\n{% endif %}"
    tokenizer = byte_tokenizer(special=["<think>", "</think>"], template=template)
    folder = tmp_path_factory.mktemp("models") / "thinker"
    build_model(folder, tokenizer=tokenizer, max_position_embeddings=4096)
    return load_model("thinker", folder, LoadConfig(device="cpu"))


@pytest.fixture(scope="session")
def gemv() -> "Gemv":
    """The compiled products, where this machine has what they need."""
    import torch

    from gateway.engine.weights.blocks import find_block
    from gateway.engine.weights.gemv import find_gemv

    pytest.importorskip("llvmlite", reason="the extra fast-cpu is not installed")
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("oneDNN packs no bfloat16 for this processor")
    try:
        find_block()
    except RuntimeError as error:
        pytest.skip(str(error))
    found = find_gemv()
    assert found is not None, "it is installed, but of no use: see the log"
    return found


@pytest.fixture
def start_engine() -> StartEngine:
    @asynccontextmanager
    async def start(
        loaded: LoadedModel, *, max_active: int = 8, max_queue: int = 8, **memory: Any
    ) -> AsyncIterator[TransformersEngine]:
        engine = TransformersEngine(
            ModelRef("huggingface", "tiny"),
            loaded,
            max_active=max_active,
            max_queue=max_queue,
            **memory,
        )
        del loaded  # so that only the engine holds it
        try:
            yield engine
        finally:
            await engine.aclose()

    return start


def ask(text: str = "Hello", **options: object) -> GenerateRequest:
    """Return a chat request of one user message; greedy unless options say otherwise."""
    chosen = Options(**{"temperature": 0.0, "max_tokens": 24, **options})  # type: ignore[arg-type]
    return GenerateRequest(id="r", model="tiny", messages=(Message.user(text),), options=chosen)
