"""Steps of few tokens in one call say what float32 says, as nearly as torch's operators do."""

import gc
import logging
import random
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from gateway.core.loading import LoadConfig
from gateway.engine.decoding import fused as fused_module
from gateway.engine.decoding.fused import FusedSteps
from gateway.engine.decoding.loaded import LoadedModel
from gateway.engine.decoding.runner import Feed
from gateway.engine.loading.loader import load_model
from gateway.engine.loading.room import EngineRoom
from gateway.engine.weights.gemv import Gemv
from tests.tiny_models import build_model

WIDE = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 1},
    "qwen2": {"num_key_value_heads": 2},  # has biases
    "qwen3": {"num_key_value_heads": 2, "head_dim": 64},  # norms its heads
    "mistral": {"num_key_value_heads": 4, "sliding_window": 20},
    "phi3": {"num_key_value_heads": 2, "sliding_window": 37},
}


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


@pytest.fixture(params=["pairs", "float32"])
def any_gemv(gemv: Gemv, request: pytest.FixtureRequest) -> Gemv:
    """Code for processors with and without products of pairs of bfloat16."""
    return gemv if request.param == "pairs" else Gemv(has_dot=False)


def fused_of(loaded: LoadedModel) -> FusedSteps:
    runner: Any = loaded.runner
    assert runner._fused is not None
    steps: FusedSteps = runner._fused
    return steps


class Three(NamedTuple):
    """One model: as float32 says it, by compiled steps, and by torch's operators."""

    exact: Any
    ours: LoadedModel
    plain: LoadedModel


@pytest.fixture(params=FAMILIES)
def three(any_gemv: Gemv, tmp_path: Path, request: pytest.FixtureRequest) -> Three:
    sizes = {**WIDE, **FAMILIES[request.param], "initializer_range": 0.1}
    folder = build_model(tmp_path / "m", family=request.param, dtype=torch.bfloat16, **sizes)
    return Three(exact_model(folder), load(folder, any_gemv), load(folder, None))


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected).norm() / expected.norm())


def are_as_near(errors: dict[str, list[float]]) -> None:
    mean = {name: sum(found) / len(found) for name, found in errors.items()}
    assert mean["ours"] < 1.1 * mean["plain"], mean
    assert max(errors["ours"]) < 2 * max(errors["plain"]), errors


def test_steps_come_as_near_to_float32_as_torch_s_operators(three: Three) -> None:
    exact, ours, plain = three
    rng = random.Random(0)
    errors: dict[str, list[float]] = {"ours": [], "plain": []}
    # Alone, and beside others of other lengths; four sequences have keys that lie the other way.
    with torch.inference_mode():
        for count, length in ((1, 1), (1, 50), (2, 20), (3, 15), (4, 30), (9, 12)):
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
    assert (False, False) in fused_of(ours).tried and fused_of(ours)._works
    are_as_near(errors)


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
    assert fused_of(loaded).tried >= {(False, False), (False, True)}


def test_prompts_beside_decoding_are_part_of_the_call(any_gemv: Gemv, three: Three) -> None:
    exact, ours, plain = three
    rng = random.Random(0)
    prompts = [[rng.randrange(3, 250) for _ in range(length)] for length in (9, 40, 3, 70, 100)]
    # Who decodes, who goes on with a prompt and who begins one, in all orders of rows.
    steps = ((4, 1, 4, 0, 0), (1, 30, 1, 2, 0), (0, 2, 1, 40, 70), (2, 7, 0, 1, 30), (0, 0, 1, 4))
    errors: dict[str, list[float]] = {"ours": [], "plain": []}
    with torch.inference_mode():
        for name, loaded in (("ours", ours), ("plain", plain)):
            loaded.runner.run([Feed(first := loaded.runner.open(), [5])])
            loaded.runner.release(first)
            places = [loaded.runner.open() for _ in prompts]
            fed = [0] * len(prompts)
            for step in steps:
                feeds, expected = [], []
                for row, count in enumerate(step):
                    ids = prompts[row][fed[row] : fed[row] + count]
                    if ids:
                        fed[row] += len(ids)
                        feeds.append(Feed(places[row], ids))
                        expected.append(exact(prompts[row][: fed[row]]))
                found = loaded.runner.run(feeds)
                errors[name] += [error(*pair) for pair in zip(found, expected, strict=True)]
    fused = fused_of(ours)
    if any_gemv.has_dot:
        assert {has_prompts for has_prompts, _ in fused.tried} == {False, True}
    assert fused._works
    are_as_near(errors)


def test_a_step_of_more_tokens_than_a_call_has_room_for_is_several(
    gemv: Gemv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {**WIDE, "initializer_range": 0.1, "max_position_embeddings": 2048}
    folder = build_model(tmp_path / "m", dtype=torch.bfloat16, **sizes)
    exact, loaded = exact_model(folder), load(folder, gemv)
    calls: list[int] = []
    run_team = gemv.run_team
    monkeypatch.setattr(gemv, "run_team", lambda *task: (calls.append(1), run_team(*task)))
    rng = random.Random(0)
    prompts = [[rng.randrange(3, 250) for _ in range(length)] for length in (300, 5, 200)]
    said = []
    for _ in range(2):  # the first step of its kind goes the other way, too
        calls.clear()
        places = [loaded.runner.open() for _ in prompts]
        said.append(loaded.runner.run([Feed(*pair) for pair in zip(places, prompts, strict=True)]))
        for place in places:
            loaded.runner.release(place)
    assert len(calls) == 5, "505 tokens in four parts, and the head"
    with torch.inference_mode():
        for found, prompt in zip(said[1], prompts, strict=True):
            near(found.float(), exact(prompt))


def test_what_lies_far_back_is_looked_at_by_torch(
    gemv: Gemv, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused_module, "NEAR", 8)
    exact, loaded = exact_model(folder), load(folder, gemv)
    calls: list[int] = []
    run = fused_module._Program.run

    def counted(self: Any, ids: torch.Tensor, *given: Any) -> torch.Tensor:
        calls.append(len(ids))
        return run(self, ids, *given)

    monkeypatch.setattr(fused_module._Program, "run", counted)
    place = loaded.runner.open()
    for ids in ([5], [6], [3] * 6, [7] * 9, [8]):
        say(loaded, place, ids)
    assert calls == [1, 1, 6, 1]
    with torch.inference_mode():
        ids = [5, 6, *[3] * 6, *[7] * 9, 8, 9]
        near(say(loaded, place, [9]), exact(ids))


def test_only_whose_logits_are_asked_for_are_told(gemv: Gemv, folder: Path) -> None:
    loaded = load(folder, gemv)
    places = [loaded.runner.open() for _ in range(3)]
    for row, place in enumerate(places):
        say(loaded, place, [5 + row, 3, 8])
    everything = loaded.runner.run([Feed(place, [7]) for place in places])
    assert fused_of(loaded).tried
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


def test_what_a_call_writes_is_counted_with_the_model(gemv: Gemv, tmp_path: Path) -> None:
    sizes = {"hidden_size": 192, "intermediate_size": 320, "num_attention_heads": 6}
    folder = build_model(tmp_path / "m", dtype=torch.bfloat16, initializer_range=0.1, **sizes)

    def rooms() -> dict[int, int]:
        tensors = [each for each in gc.get_objects() if type(each) is torch.Tensor]
        return {id(each): each.nbytes for each in tensors if each.shape[:1] == (gemv.most_rows,)}

    plain = load(folder, None)
    before = rooms()
    loaded = load(folder, gemv)
    place = loaded.runner.open()
    for ids in ([5], [6], [7, 8], [9, 10]):
        say(loaded, place, ids)
    taken = sum(size for key, size in rooms().items() if key not in before)
    assert fused_of(loaded)._works and loaded.memory_bytes - plain.memory_bytes == taken > 0


def test_until_the_model_is_packed_torch_computes(gemv: Gemv, folder: Path) -> None:
    loaded = load(folder, gemv, packs=False)
    place = loaded.runner.open()
    say(loaded, place, [5])
    assert not fused_of(loaded).tried
    rest = loaded.packing
    while rest is not None and not rest.is_done:
        rest.step()
    say(loaded, place, [6])
    assert fused_of(loaded).tried == {(False, False)}


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
    class Wrong(fused_module._Program):
        def run(self, *given: Any) -> torch.Tensor:
            return super().run(*given) * 1.5

    monkeypatch.setattr(fused_module, "_Program", Wrong)
    ours, plain = load(folder, gemv), load(folder, None)
    places = [loaded.runner.open() for loaded in (ours, plain)]
    for ids in ([5, 3, 8], [4], [6]):
        found, expected = (
            say(loaded, place, ids) for loaded, place in zip((ours, plain), places, strict=True)
        )
        near(found, expected)
    assert not fused_of(ours)._works
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
