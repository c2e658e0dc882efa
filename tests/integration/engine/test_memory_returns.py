"""What a model took comes back: the memory of a process that loads and unloads all the time."""

import json
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

from tests.tiny_models import build_model

CYCLES = 40
"""Loads of each model."""
MODELS = 3
MAX_GROWTH = 0.03


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Three models of 17 to 48 MB in float32: large enough to be seen among torch's own pages."""
    return [
        build_model(
            tmp_path / f"m{layers}",
            num_hidden_layers=layers,
            hidden_size=512,
            intermediate_size=2048,
            seed=layers,
        )
        for layers in (1, 2, 3)
    ]


@pytest.mark.timeout(400)
def test_memory_comes_back_after_forty_cycles_of_three_models(folders: list[Path]) -> None:
    sizes = [(folder / "model.safetensors").stat().st_size for folder in folders]
    assert max(sizes) > 30_000_000
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.engine.memory_child", str(CYCLES), *folders],
        capture_output=True,
        text=True,
        timeout=380,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    unloaded = report["unloaded"]
    assert len(unloaded) == CYCLES * MODELS
    first = unloaded[MODELS - 1]
    # Single readings catch threads that have yet to go.
    assert median(unloaded[-10 * MODELS :]) <= first * (1 + MAX_GROWTH)
    assert max(unloaded) < first + max(sizes)
    # The largest is seen to come, so it would be seen to stay.
    largest = slice(MODELS - 1, None, MODELS)
    went = map(int.__sub__, report["loaded"][largest], unloaded[largest])
    assert median(went) > sizes[MODELS - 1] * 0.7
