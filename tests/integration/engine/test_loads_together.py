"""Loads of many models at the same time leave transformers as it was."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gateway.core.loading import LoadConfig
from gateway.engine.loading.loader import load_model
from tests.tiny_models import build_model

pytest.importorskip("torch")


def test_models_that_are_loaded_at_once_all_load_and_so_does_the_next(tmp_path: Path) -> None:
    paths = [build_model(tmp_path / name) for name in ("a", "b", "c")]

    def load(path: Path) -> int:
        return load_model(path.name, path, LoadConfig()).memory_bytes

    with ThreadPoolExecutor(6) as threads:
        sizes = list(threads.map(load, paths * 8))
    assert len(set(sizes)) == 1
    assert load(paths[0]) == sizes[0]
