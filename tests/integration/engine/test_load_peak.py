"""What a load takes at its worst moment is known before it begins, and comes back."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from gateway.engine.weights.linear import packs_bfloat16
from tests.tiny_models import build_model

MARGIN = 40_000_000
"""What threads, allocators and pages of code add in a process, whatever the model's size."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models of about 250 MB as float32, in both dtypes, and a tiny one."""
    sizes = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "initializer_range": 0.02,
    }
    home = tmp_path_factory.mktemp("peak")
    return {
        "warm": build_model(home / "warm"),
        "float32": build_model(home / "float32", **sizes),
        "bfloat16": build_model(home / "bfloat16", dtype=torch.bfloat16, **sizes),
    }


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the high-water mark")
@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
@pytest.mark.parametrize(
    ("stored", "dtype"),
    [("float32", "auto"), ("bfloat16", "auto"), ("float32", "bfloat16"), ("bfloat16", "float32")],
)
def test_a_load_never_takes_more_than_is_reserved_for_it(
    folders: dict[str, Path], stored: str, dtype: str, quantization: str
) -> None:
    child = [sys.executable, "-m", "tests.integration.engine.load_peak_child"]
    done = subprocess.run(
        [*child, folders["warm"], folders[stored], dtype, quantization],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    assert report["peak"] <= report["estimated"] + MARGIN
    assert report["kept"] <= report["counted"] + MARGIN
    # Code is compiled where bfloat16 is packed, and counts: more than the margin would hide.
    packs = quantization == "none" and "bfloat16" in (dtype if dtype != "auto" else stored)
    is_counted = packs and packs_bfloat16() and find_spec("llvmlite") is not None
    assert report["overhead"] > MARGIN if is_counted else report["overhead"] == 0
    # Nor is it reserved in vain.
    assert report["estimated"] < 2.5 * max(report["peak"], report["counted"])
