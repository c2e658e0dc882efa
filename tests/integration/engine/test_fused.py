"""Steps of few sequences in one call say what float32 says, as nearly as torch's operators do."""

import logging
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from gateway.core.loading import LoadConfig
from gateway.engine.decoding import fused as fused_module
from gateway.engine.decoding.fused import FusedSteps
from gateway.engine.decoding.loaded import LoadedModel
from gateway.engine.decoding.runner import Feed
from gateway.engine.loading.loader import load_model
from gateway.engine.loading.room import EngineRoom
from gateway.engine.weights.gemv import Gemv, find_gemv
from tests.tiny_models import build_model

WIDE = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 1},
    "qwen2": {"num_key_value_heads": 2},  # has biases
    "qwen3": {"num_key_value_heads": 2, "head_dim": 64},  # norms its heads
    "mistral": {"num_key_value_heads": 4, "sliding_window": 20},
    "phi3": {"num_key_value_heads": 2, "sliding_window": 37},
}


@pytest.fixture(scope="module")
def gemv() -> Gemv:
    pytest.importorskip("llvmlite", reason="the extra fast-cpu is not installed")
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("oneDNN packs no bfloat16 for this processor")
    found = find_gemv()
    assert found is not None, "it is installed, but of no use: see the log"
    return found


def load(folder: Path, gemv: Gemv | None, *, packs: bool = True) -> LoadedModel:
    room = EngineRoom()
    room._gemv.append(gemv)
    loaded = load_model("m", folder, LoadConfig(device="cpu"), room=room)
    assert loaded.packing is not None
    while packs and not loaded.packing.is_done:
        loaded.packing.step()
    return loaded


def exact_model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return lambda ids: model(torch.tensor([ids])).logits[0, -1]


def fused_of(loaded: LoadedModel) -> FusedSteps:
    runner: Any = loaded.runner
    assert runner._fused is not None
    steps: FusedSteps = runner._fused
    return steps


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected).norm() / expected.norm())


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_come_as_near_to_float32_as_torch_s_operators(
    gemv: Gemv, tmp_path: Path, family: str
) -> None:
    sizes = {**WIDE, **FAMILIES[family], "initializer_range": 0.1}
    folder = build_model(tmp_path / "m", family=family, dtype=torch.bfloat16, **sizes)
    exact, ours, plain = exact_model(folder), load(folder, gemv), load(folder, None)
    rng = random.Random(0)
    errors: dict[str, list[float]] = {"ours": [], "plain": []}
    # Alone, and beside others of other lengths; four sequences have keys that lie the other way.
    with torch.inference_mode():
        for count, length in ((1, 1), (1, 50), (2, 20), (3, 15), (4, 30)):
            prompts = [
                [rng.randrange(3, 250) for _ in range(length + 7 * row)] for row in range(count)
            ]
            places = {
                name: [loaded.runner.open() for _ in prompts]
                for name, loaded in (("ours", ours), ("plain", plain))
            }
            for name, loaded in (("ours", ours), ("plain", plain)):
                feeds = [Feed(*pair) for pair in zip(places[name], prompts, strict=True)]
                loaded.runner.run(feeds)
            for _ in range(4):
                token = rng.randrange(3, 250)
                for prompt in prompts:
                    prompt.append(token)
                expected = torch.stack([exact(prompt) for prompt in prompts])
                for name, loaded in (("ours", ours), ("plain", plain)):
                    found = loaded.runner.run([Feed(place, [token]) for place in places[name]])
                    errors[name].append(error(found, expected))
            for name, loaded in (("ours", ours), ("plain", plain)):
                for place in places[name]:
                    loaded.runner.release(place)
    assert set(fused_of(ours)._steps) == {1, 2, 3, 4}
    mean = {name: sum(found) / len(found) for name, found in errors.items()}
    assert mean["ours"] < 1.1 * mean["plain"], mean
    assert max(errors["ours"]) < 2 * max(errors["plain"]), errors


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {**WIDE, "num_key_value_heads": 2, "initializer_range": 0.1}
    return build_model(tmp_path_factory.mktemp("fused") / "m", dtype=torch.bfloat16, **sizes)


def say(loaded: LoadedModel, place: Any, ids: list[int]) -> torch.Tensor:
    return loaded.runner.run([Feed(place, ids)])[0].float()


def near(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=5e-2, atol=3e-2 * float(expected.abs().max()))


def test_a_sequence_goes_on_as_the_cache_grows_and_others_come_and_go(
    gemv: Gemv, folder: Path
) -> None:
    exact, loaded = exact_model(folder), load(folder, gemv)
    place, ids = loaded.runner.open(), [5, 3, 8]
    say(loaded, place, ids)
    others: list[Any] = []
    with torch.inference_mode():
        for index in range(40):
            token = 3 + 7 * index % 240
            if index in (10, 12, 14, 16, 18):  # five of them: more than one call is made for
                others.append(loaded.runner.open())
                loaded.runner.run([Feed(others[-1], [9] * (60 * len(others)))])
            if index in (25, 30):
                loaded.runner.release(others.pop(0))
            feeds = [Feed(place, [token]), *(Feed(other, [4]) for other in others)]
            ids.append(token)
            near(loaded.runner.run(feeds)[0].float(), exact(ids))
    assert set(fused_of(loaded)._steps) >= {1, 4}


def test_only_whose_logits_are_asked_for_are_told(gemv: Gemv, folder: Path) -> None:
    loaded = load(folder, gemv)
    places = [loaded.runner.open() for _ in range(3)]
    for row, place in enumerate(places):
        say(loaded, place, [5 + row, 3, 8])
    everything = loaded.runner.run([Feed(place, [7]) for place in places])
    assert 3 in fused_of(loaded)._steps
    for place in places:
        place.length -= 1  # the same step again
    feeds = [Feed(places[2], [7]), Feed(places[0], [7], asks=False), Feed(places[1], [7])]
    found = loaded.runner.run(feeds)
    near(found.float(), everything[[2, 1]].float())


def test_what_a_step_said_is_not_overwritten_by_the_next(gemv: Gemv, folder: Path) -> None:
    loaded = load(folder, gemv)
    place = loaded.runner.open()
    said = [say(loaded, place, [token]) for token in (5, 6, 7)]
    kept = loaded.runner.run([Feed(place, [8])])
    before = kept.clone()
    said.append(say(loaded, place, [9]))
    assert torch.equal(kept, before)
    assert not torch.equal(said[-1], said[-2])


def test_until_the_model_is_packed_torch_computes(gemv: Gemv, folder: Path) -> None:
    loaded = load(folder, gemv, packs=False)
    place = loaded.runner.open()
    say(loaded, place, [5])
    assert not fused_of(loaded)._steps
    rest = loaded.packing
    while rest is not None and not rest.is_done:
        rest.step()
    say(loaded, place, [6])
    assert set(fused_of(loaded)._steps) == {1}


def test_what_no_sequence_wrote_is_not_looked_at(gemv: Gemv, folder: Path) -> None:
    loaded = load(folder, gemv)
    for count in (1, 4):
        places = [loaded.runner.open() for _ in range(count)]
        for ids in ([5, 3, 8], [7]):  # the first step is compared with the other way
            loaded.runner.run([Feed(place, ids) for place in places])
        runner: Any = loaded.runner
        with torch.inference_mode():
            for tensor in (*runner._cache._keys, *runner._cache._values):
                tensor[:, :, 5:] = torch.nan
        assert torch.isfinite(loaded.runner.run([Feed(place, [7]) for place in places])).all()
        for place in places:
            loaded.runner.release(place)


def test_a_step_that_says_something_else_is_left_to_torch(
    gemv: Gemv, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Wrong(fused_module._Step):
        def run(self, *given: Any) -> torch.Tensor:
            return super().run(*given) * 1.5

    monkeypatch.setattr(fused_module, "_Step", Wrong)
    ours, plain = load(folder, gemv), load(folder, None)
    places = [loaded.runner.open() for loaded in (ours, plain)]
    for ids in ([5, 3, 8], [4], [6]):
        found, expected = (
            say(loaded, place, ids) for loaded, place in zip((ours, plain), places, strict=True)
        )
        near(found, expected)
    assert not fused_of(ours)._steps
    assert "left to torch" in caplog.text


@pytest.mark.parametrize(
    "sizes",
    [{"hidden_act": "gelu"}, {"num_attention_heads": 8}],
    ids=["another activation", "heads of another size"],
)
def test_a_model_that_it_is_not_made_for_runs_as_before(
    gemv: Gemv, tmp_path: Path, caplog: pytest.LogCaptureFixture, sizes: dict[str, Any]
) -> None:
    options = {**WIDE, "num_key_value_heads": 2, "initializer_range": 0.1, **sizes}
    folder = build_model(tmp_path / "m", dtype=torch.bfloat16, **options)
    with caplog.at_level(logging.INFO):
        loaded = load(folder, gemv)
    runner: Any = loaded.runner
    assert runner._fused is None and "left to torch" in caplog.text
    place = loaded.runner.open()
    with torch.inference_mode():
        near(say(loaded, place, [5, 3]), exact_model(folder)([5, 3]))
        near(say(loaded, place, [7]), exact_model(folder)([5, 3, 7]))
