"""Packed linear layers: the same products, fewer calls, and the way back where they do not fit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gateway.core.loading import LoadConfig
from gateway.engine.files.mapped import MappedWeights
from gateway.engine.loading.loader import load_model
from gateway.engine.weights import packing
from gateway.engine.weights.gemv import Gemv
from gateway.engine.weights.linear import PackedLinear, PackedProduct, can_pack, replace_linears
from gateway.engine.weights.packing import Packing
from tests.tiny_models import build_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return build_model(tmp_path / "m", dtype=torch.bfloat16)


@pytest.fixture
def model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    if not can_pack(model):
        pytest.skip("this processor has no packed product for bfloat16")
    return model


def test_a_packed_model_says_what_the_plain_one_says(model: Any) -> None:
    ids = torch.tensor([[5, 9, 3, 7]])
    with torch.inference_mode():
        expected = model(ids).logits.float()
        replace_linears(model, PackedProduct)
        found = model(ids).logits.float()
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=5e-2, atol=5e-2 * scale)


def test_every_linear_is_packed_and_siblings_share_one_product(model: Any) -> None:
    plain_bytes = sum(m.weight.nbytes for m in model.modules() if type(m) is nn.Linear)
    assert replace_linears(model, PackedProduct) == plain_bytes
    assert not any(type(module) is nn.Linear for module in model.modules())
    attention = model.model.layers[0].self_attn
    assert attention.q_proj.product is attention.k_proj.product is attention.v_proj.product
    assert attention.o_proj.product is not attention.q_proj.product


def test_siblings_that_are_given_different_inputs_compute_each_its_own() -> None:
    layers = [nn.Linear(16, size, dtype=torch.bfloat16) for size in (8, 4, 12)]
    holder = nn.Module()
    for name, layer in zip(("q_proj", "k_proj", "v_proj"), layers, strict=True):
        holder.add_module(name, layer)
    try:
        replace_linears(holder, PackedProduct)
    except (AttributeError, RuntimeError):
        pytest.skip("this processor has no packed product for bfloat16")
    with torch.inference_mode():
        inputs = [torch.randn(2, 1, 16, dtype=torch.bfloat16) for _ in layers]
        for order in ((0, 1, 2), (2, 0, 1), (1, 1, 0)):
            for index in order:
                packed = getattr(holder, ("q_proj", "k_proj", "v_proj")[index])
                assert isinstance(packed, PackedLinear)
                expected = layers[index](inputs[index])
                torch.testing.assert_close(packed(inputs[index]), expected, rtol=5e-2, atol=5e-2)


@pytest.mark.usefixtures("model")
def test_a_model_that_cannot_be_packed_runs_as_it_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Breaking(Packing):
        def __init__(self, model: Any, files: MappedWeights, gemv: Gemv | None = None) -> None:
            super().__init__(model, files, gemv)
            model.lm_head = nn.Identity()

    monkeypatch.setattr(packing, "Packing", Breaking)
    loaded = load_model("m", folder, LoadConfig(device="cpu"))
    assert type(loaded.model.lm_head) is nn.Linear
    assert loaded.packing is None


@pytest.mark.usefixtures("model")
def test_packed_weights_are_counted(folder: Path) -> None:
    packed = load_model("m", folder, LoadConfig(device="cpu"))
    assert packed.memory_bytes >= (folder / "model.safetensors").stat().st_size * 0.95


def test_float32_stays_exact(tmp_path: Path) -> None:
    loaded = load_model("m", build_model(tmp_path / "f"), LoadConfig(device="cpu"))
    assert not any(isinstance(module, PackedLinear) for module in loaded.model.modules())
