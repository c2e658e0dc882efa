"""Weights of 8 and 4 bits: the products themselves, and whole models that run on them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gateway.core.cards import ModelCard
from gateway.core.errors import ModelLoadFailed
from gateway.core.loading import LoadConfig
from gateway.core.models import LocalModel
from gateway.core.names import ModelRef
from gateway.engine.loading.loader import load_model
from gateway.engine.opening import EngineSpec, open_engine
from gateway.engine.weights.linear import PackedLinear
from gateway.engine.weights.quantization import GROUP, Int4Product, Int8Product, quantize
from tests.integration.engine.conftest import StartEngine, ask
from tests.tiny_models import build_model
from tests.told import collect

WIDE = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4}


def layers(dtype: torch.dtype, bias: bool) -> list[nn.Linear]:
    torch.manual_seed(0)
    return [nn.Linear(128, outputs, bias=bias, dtype=dtype) for outputs in (64, 32)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("product", "bits"), [(Int8Product, 8), (Int4Product, 4)])
def test_no_output_is_further_off_than_rounding_its_weights_explains(
    product: type[Int8Product | Int4Product], bits: int, bias: bool, dtype: torch.dtype
) -> None:
    joint = layers(dtype, bias)
    tensor = torch.randn(2, 5, 128, dtype=dtype)
    with torch.inference_mode():
        found = product(joint)(tensor).float()
        expected = torch.cat([layer(tensor) for layer in joint], -1).float()
    weight = torch.cat([layer.weight for layer in joint]).float()
    if bits == 8:
        step = (weight.abs().amax(1) / 127)[:, None].expand_as(weight)
    else:
        groups = weight.view(len(weight), -1, GROUP)
        span = (groups.amax(-1) - groups.amin(-1)) / 15
        step = span.repeat_interleave(GROUP, 1)
    # Each weight is off by half a step at most.
    bound = tensor.float().abs() @ (step / 2).T
    slack = 1e-3 if dtype is torch.float32 else 0.05
    assert found.shape == expected.shape
    assert ((found - expected).abs() <= bound + slack).all()
    assert (found - expected).abs().max() > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quantization", ["int8", "int4"])
async def test_a_quantized_model_takes_less_memory_and_says_the_same_in_company(
    tmp_path: Path, quantization: Any, dtype: Any, start_engine: StartEngine
) -> None:
    folder = build_model(tmp_path / "m", **WIDE)
    plain = load_model("plain", folder, LoadConfig(device="cpu", dtype=dtype))
    loaded = load_model("q", folder, LoadConfig("cpu", dtype, quantization))
    assert loaded.runner.is_batched
    assert all(type(module) is not nn.Linear for module in loaded.model.modules())
    assert any(isinstance(module, PackedLinear) for module in loaded.model.modules())
    whole = plain.model.get_input_embeddings().weight.nbytes
    share = {"int8": 0.6, "int4": 0.45}[quantization]
    assert loaded.memory_bytes - whole < share * (plain.memory_bytes - whole)
    async with start_engine(loaded) as engine:
        answer = await collect(engine.stream(ask(max_tokens=20)))
    assert answer.usage.completion_tokens > 0


async def test_eight_bits_keep_what_a_model_is_sure_of(tmp_path: Path) -> None:
    folder = build_model(tmp_path / "m", **WIDE)
    plain = load_model("plain", folder, LoadConfig(device="cpu")).model
    loaded = load_model("q", folder, LoadConfig("cpu", "auto", "int8")).model
    ids = torch.tensor([[5, 9, 33, 70, 101, 140]])
    plain.set_attn_implementation("sdpa")
    loaded.set_attn_implementation("sdpa")
    with torch.inference_mode():
        expected, found = plain(ids).logits, loaded(ids).logits
    error = (found - expected).norm() / expected.norm()
    assert 0 < error < 0.05


def test_where_it_cannot_be_done_that_is_said() -> None:
    model = nn.Linear(4, 4, device="meta")
    model.device, model.dtype = torch.device("meta"), torch.float32  # type: ignore[assignment]
    with pytest.raises(ModelLoadFailed, match="int8 on meta"):
        quantize("m", model, "int8")


@pytest.mark.parametrize(
    "card", [ModelCard("BertModel", "bert"), ModelCard("llama", "llama", format="gguf")]
)
async def test_what_is_not_quantized_while_it_loads_says_so(card: ModelCard) -> None:
    spec = EngineSpec(
        ref=ModelRef("huggingface", "m"),
        files=LocalModel("m", "/nowhere", size_bytes=1, card=card),
        load=LoadConfig(quantization="int4"),
        max_active=1,
        max_queue=0,
    )
    with pytest.raises(ModelLoadFailed, match="int4"):
        await open_engine(spec)
