"""Tiny random models, built once, and engines over them."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.core.loading import LoadConfig
from gateway.core.messages import GenerateRequest, Message, Options
from gateway.core.names import ModelRef
from gateway.engine.decoding.loaded import LoadedModel
from gateway.engine.engine import TransformersEngine
from gateway.engine.loading.loader import load_model
from tests.tiny_models import build_model

StartEngine = Callable[..., AbstractAsyncContextManager[TransformersEngine]]


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "llama"
    return build_model(folder, max_position_embeddings=1024)


@pytest.fixture(scope="session")
def llama(llama_folder: Path) -> LoadedModel:
    return load_model("llama", llama_folder, LoadConfig(device="cpu"))


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
