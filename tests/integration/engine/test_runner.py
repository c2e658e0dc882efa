"""BatchRunner against the model's own forward pass, over random joins, leaves and pauses."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from gateway.engine.decoder import CachedDecoder
from gateway.engine.runner import BatchRunner, choose_runner
from tests.tiny_models import build_model

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma3_text": {"head_dim": 8, "sliding_window": 8},
    "gpt2": {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 256},
}


def load_pair(folder: Path, family: str) -> tuple[BatchRunner, Any]:
    """Return a batched runner, and a model of its own to compare with."""
    from transformers import AutoModelForCausalLM

    build_model(folder, family=family, **FAMILIES[family])
    runner = choose_runner(AutoModelForCausalLM.from_pretrained(folder).eval())
    assert isinstance(runner, BatchRunner)
    return runner, AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(3))
def test_whoever_comes_goes_or_waits_no_sequence_notices(
    tmp_path: Path, family: str, seed: int
) -> None:
    runner, model = load_pair(tmp_path / "m", family)
    rng = random.Random(seed)
    living: list[tuple[Any, CachedDecoder]] = []
    for _ in range(60):
        if len(living) < 5 and rng.random() < 0.4:
            living.append((runner.open(), CachedDecoder(model)))
        chosen = [pair for pair in living if rng.random() < 0.7]
        # Chunks and single tokens in one step, as prompts join those who speak.
        fed = [[rng.randrange(200) for _ in range(rng.choice((1, 1, 1, 7)))] for _ in chosen]
        found = runner.run([(place, ids) for (place, _), ids in zip(chosen, fed, strict=True)])
        for (_, decoder), ids, logits in zip(chosen, fed, found, strict=True):
            torch.testing.assert_close(logits, decoder.feed(ids), rtol=1e-3, atol=1e-3)
        if living and rng.random() < 0.3:
            place, _ = living.pop(rng.randrange(len(living)))
            runner.release(place)


def test_a_failed_step_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner, model = load_pair(tmp_path / "m", "llama")
    decoder, place = CachedDecoder(model), runner.open()
    runner.run([(place, [1, 2, 3])])
    decoder.feed([1, 2, 3])
    forward = runner._forward
    with monkeypatch.context() as patch:

        def compute_and_fail(*arguments: Any) -> Any:
            forward(*arguments)
            raise RuntimeError("out of memory, say")

        patch.setattr(runner, "_forward", compute_and_fail)
        with pytest.raises(RuntimeError):
            runner.run([(place, [9])])
    torch.testing.assert_close(runner.run([(place, [4])])[0], decoder.feed([4]))


def test_the_last_to_leave_frees_the_cache(tmp_path: Path) -> None:
    runner, _ = load_pair(tmp_path / "m", "llama")
    places = [runner.open(), runner.open()]
    runner.run([(place, [1, 2]) for place in places])
    assert runner._cache.memory_bytes > 0
    for place in places:
        runner.release(place)
    assert runner._cache.memory_bytes == 0
