"""transformers replaces functions of the whole process while it builds a model: one at a time."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gateway.core.loading import LoadConfig
from gateway.engine.loading.loader import load_model
from tests.tiny_models import build_model

pytest.importorskip("torch")


def test_of_models_that_are_loaded_at_once_one_is_built_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    build, inside = AutoModelForCausalLM.from_pretrained, threading.Semaphore(1)
    met: list[bool] = []

    def watched(*arguments: Any, **options: Any) -> Any:
        alone = inside.acquire(blocking=False)
        met.append(not alone)
        time.sleep(0.05)
        try:
            return build(*arguments, **options)
        finally:
            if alone:
                inside.release()

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", watched)
    path = build_model(tmp_path / "a")
    with ThreadPoolExecutor(4) as threads:
        loads = [threads.submit(load_model, "a", path, LoadConfig()) for _ in range(4)]
    assert len({load.result().memory_bytes for load in loads}) == 1
    assert met == [False] * 4
