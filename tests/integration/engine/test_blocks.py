"""The blocks of packed weights: found by looking, with AMX and without."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gateway.engine.weights import blocks as blocks_module
from gateway.engine.weights.blocks import BLOCKS, find_block, lies_in
from gateway.engine.weights.gemv import Gemv, find_gemv

HERE = Path(__file__).parent
TESTS = (
    "test_gemv.py::test_it_says_what_float32_says_of_any_shape",
    "test_fused.py::test_steps_come_as_near_to_float32_as_torch_s_operators[llama-pairs]",
)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python where oneDNN uses no AMX."""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_only_one_size_of_block_fits(gemv: Gemv) -> None:
    weight = torch.randn(100, 518).bfloat16()
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    assert [block for block in BLOCKS if lies_in(block, packed, weight)] == [find_block()]
    assert find_block() == gemv.block
    assert not lies_in(gemv.block, packed, torch.randn(100, 518).bfloat16())
    assert not lies_in(gemv.block, packed, weight[:30])


def test_a_layout_that_is_not_known_is_told_of(
    gemv: Gemv, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(blocks_module, "BLOCKS", (48,))
    with caplog.at_level(logging.WARNING):
        assert find_gemv() is None
    assert "left to oneDNN: RuntimeError: oneDNN packs weights in a layout" in caplog.text


@pytest.mark.timeout(400)  # torch and transformers are loaded once more
def test_it_is_right_where_onednn_may_not_use_amx(gemv: Gemv) -> None:
    code = "from gateway.engine.weights.blocks import find_block; print(find_block())"
    found = run("-c", code)
    assert found.returncode == 0, found.stderr
    if int(found.stdout) == gemv.block:
        pytest.skip("this processor has the same blocks without AMX")
    tests = [str(HERE / test) for test in TESTS]
    options = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "addopts=")
    said = run("-m", "pytest", *options, *tests)
    assert said.returncode == 0, said.stdout
    assert "skipped" not in said.stdout
