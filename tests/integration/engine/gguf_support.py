"""What the tests with llama.cpp share. Importing it skips a module where the extra is missing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.engine.decoding.loaded import LoadedModel
from gateway.engine.llama_cpp import loader
from gateway.engine.loading.loader import LoadConfig
from tests.tiny_gguf import build_gguf

LoadGguf = Callable[..., LoadedModel]


pytest.importorskip("llama_cpp", reason="the extra gguf is not installed")
pytest.importorskip("gguf", reason="the package gguf is not installed")


@pytest.fixture
def load_gguf(llama_folder: Path, tmp_path: Path) -> LoadGguf:
    """Write a tiny model as GGUF and load it; options are build_gguf's."""

    def load(*, context_length: int = 1024, sequences: int = 8, **options: Any) -> LoadedModel:
        file = build_gguf(tmp_path / "tiny.gguf", llama_folder, **options)
        return loader.load_gguf(
            "tiny",
            file,
            LoadConfig(device="cpu"),
            context_length=context_length,
            sequences=sequences,
            is_proven=True,
        )

    return load
