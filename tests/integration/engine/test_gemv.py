"""Products of few tokens by compiled code: what float32 says, and the way back to oneDNN."""

import builtins
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gateway.core.loading import LoadConfig
from gateway.engine.decoding.loaded import LoadedModel
from gateway.engine.decoding.runner import Feed
from gateway.engine.loading.loader import load_model
from gateway.engine.loading.room import EngineRoom
from gateway.engine.weights import gemv as gemv_module
from gateway.engine.weights.gemv import MOST_ROWS, BoundGemv, Gemv, find_gemv, is_right
from gateway.engine.weights.linear import PackedProduct
from gateway.engine.weights.tasks import PRODUCT
from tests.tiny_models import build_model


def layer_of(outputs: int, inputs: int, *, bias: bool, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    layer = nn.Linear(inputs, outputs, bias=bias, dtype=torch.bfloat16)
    return layer.requires_grad_(False)


def exact(layer: nn.Linear, tensor: torch.Tensor) -> torch.Tensor:
    """Return what float32 says of it, rounded once."""
    bias = None if layer.bias is None else layer.bias.float()
    return nn.functional.linear(tensor.float(), layer.weight.float(), bias).bfloat16()


def bound(gemv: Gemv, layer: nn.Linear) -> BoundGemv:
    packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight, None)
    return BoundGemv(gemv, packed, layer.weight, layer.bias)


@settings(deadline=None, max_examples=60)
@given(
    outputs=st.integers(1, 300),
    pairs=st.integers(1, 150),
    rows=st.integers(1, 40),
    bias=st.booleans(),
    threads=st.sampled_from([1, 2]),
    seed=st.integers(0, 1000),
)
def test_it_says_what_float32_says_of_any_shape(
    gemv: Gemv, outputs: int, pairs: int, rows: int, bias: bool, threads: int, seed: int
) -> None:
    layer = layer_of(outputs, 2 * pairs, bias=bias, seed=seed)
    tokens = torch.randn(rows, 2 * pairs).bfloat16()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = bound(gemv, layer)(tokens)
    finally:
        torch.set_num_threads(before)
    # A rounding to bfloat16 at the most: sums in another order may fall on its other side.
    torch.testing.assert_close(found, exact(layer, tokens), rtol=2**-7, atol=1e-4)


def test_tokens_may_lie_apart_and_in_any_number_of_dimensions(gemv: Gemv) -> None:
    layer = layer_of(100, 64, bias=True)
    product = bound(gemv, layer)
    wide = torch.randn(3, 128).bfloat16()
    torch.testing.assert_close(product(wide[:, ::2]), exact(layer, wide[:, ::2]))
    one = torch.randn(1, 1, 64).bfloat16()
    assert product(one).shape == (1, 1, 100)
    torch.testing.assert_close(product(one), exact(layer, one))
    assert product(torch.randn(64).bfloat16()).shape == (100,)


def test_what_is_no_number_stays_none(gemv: Gemv) -> None:
    layer = layer_of(64, 32, bias=False)
    layer.weight[3, 4], layer.weight[5, 6] = torch.nan, torch.inf
    found = bound(gemv, layer)(torch.ones(1, 32, dtype=torch.bfloat16))[0]
    assert torch.isnan(found[3]) and found[5] == torch.inf
    assert torch.isfinite(found).sum() == 62


def count_rows(gemv: Gemv, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which each product adds how many tokens it was of."""
    rows: list[int] = []
    run = gemv.run

    def counted(task: tuple[int, ...]) -> None:
        rows.append(task[PRODUCT.index("rows")])
        run(task)

    monkeypatch.setattr(gemv, "run", counted)
    return rows


def test_few_tokens_go_by_it_and_more_by_onednn(
    gemv: Gemv, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = layer_of(96, 64, bias=True)
    product = PackedProduct([layer], gemv)
    rows = count_rows(gemv, monkeypatch)
    for count in (1, gemv.most_rows, gemv.most_rows + 1):
        tokens = torch.randn(count, 64).bfloat16()
        torch.testing.assert_close(product(tokens), exact(layer, tokens), rtol=5e-2, atol=5e-2)
    assert rows == [1, gemv.most_rows]


def test_a_layer_that_lies_in_another_way_is_left_to_onednn(gemv: Gemv) -> None:
    layer = layer_of(48, 33, bias=False)
    with pytest.raises(ValueError, match="48 x 33"):
        bound(gemv, layer)
    tokens = torch.randn(1, 33).bfloat16()
    found = PackedProduct([layer], gemv)(tokens)
    torch.testing.assert_close(found, exact(layer, tokens), rtol=5e-2, atol=5e-2)


def test_code_that_is_wrong_is_not_used(
    gemv: Gemv, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Wrong(BoundGemv):
        def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
            return super().__call__(tensor) * 1.1

    monkeypatch.setattr(gemv_module, "BoundGemv", Wrong)
    assert find_gemv() is None
    assert "its output differs" in caplog.text


def test_a_processor_without_products_of_pairs_has_them_in_float32(gemv: Gemv) -> None:
    plain = Gemv(has_dot=False)
    assert is_right(plain) and plain.most_rows == MOST_ROWS
    layer = layer_of(100, 64, bias=True)
    for rows in (1, MOST_ROWS, MOST_ROWS + 3):
        tokens = torch.randn(rows, 64).bfloat16()
        torch.testing.assert_close(bound(plain, layer)(tokens), exact(layer, tokens))


def test_without_llvm_onednn_computes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = builtins.__import__

    def without_llvm(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("llvmlite"):
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_llvm)
    with caplog.at_level(logging.INFO):
        assert find_gemv() is None
    assert "fast-cpu" in caplog.text


def test_a_runtime_without_its_team_is_told_of(
    gemv: Gemv, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(name: str | None) -> Any:
        raise AttributeError("undefined symbol: GOMP_parallel")

    monkeypatch.setattr(gemv_module.ctypes, "CDLL", missing)
    assert find_gemv() is None
    assert "GOMP_parallel" in caplog.text


def load(folder: Path, room: EngineRoom) -> LoadedModel:
    loaded = load_model("m", folder, LoadConfig(device="cpu"), room=room)
    assert loaded.packing is not None
    while not loaded.packing.is_done:
        loaded.packing.step()
    return loaded


def test_a_model_says_the_same_by_it_as_by_onednn(
    gemv: Gemv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = build_model(tmp_path / "m", dtype=torch.bfloat16, hidden_size=256)
    with_it, without = EngineRoom(), EngineRoom()
    monkeypatch.setattr(with_it, "gemv", lambda: gemv)
    monkeypatch.setattr(without, "gemv", lambda: None)
    rows = count_rows(gemv, monkeypatch)
    said = []
    for room in (with_it, without):
        runner = load(folder, room).runner
        places = [runner.open() for _ in range(2)]
        runner.run([Feed(place, [5, 3, 8, 1, 9, 2]) for place in places])
        rows.clear()
        logits = [runner.run([Feed(place, [token]) for place in places]) for token in (7, 4, 6)]
        assert set(rows) == ({2} if room is with_it else set())
        said.append(torch.cat(logits).float())
    scale = float(said[1].abs().max())
    torch.testing.assert_close(said[0], said[1], rtol=5e-2, atol=5e-2 * scale)


def test_a_room_compiles_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(gemv_module, "find_gemv", lambda overhead: asked.append(1))
    room = EngineRoom()
    assert room.gemv() is None and room.gemv() is None
    assert asked == [1]
