"""The runners against the model's own forward pass, over random joins, leaves and pauses."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from gateway.core.loading import LoadConfig
from gateway.engine.decoding.decoder import CachedDecoder
from gateway.engine.decoding.kv_cache import CacheFull
from gateway.engine.decoding.loaded import LoadedModel
from gateway.engine.decoding.prompt_cache import BLOCK_TOKENS
from gateway.engine.decoding.runner import BatchRunner, Feed
from gateway.engine.loading.loader import load_model
from gateway.engine.loading.probe import choose_runner, probe_logits
from tests.integration.engine.ledger import Ledger
from tests.tiny_models import build_model

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "mistral": {"sliding_window": 8},
    "phi3": {"sliding_window": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 8, "attn_logit_softcapping": 2.0},
    "gemma3_text": {"head_dim": 8, "sliding_window": 8},
    "gpt2": {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 256},
    "mixtral": {"num_local_experts": 2},
}
STACKED = {"llama", "qwen2", "qwen3", "mistral", "phi3"}


def load_pair(folder: Path, family: str, **overrides: Any) -> tuple[BatchRunner, Any]:
    """Return a batched runner, and a model of its own to compare with."""
    from transformers import AutoModelForCausalLM

    build_model(folder, family=family, **FAMILIES[family], **overrides)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    _, runner = choose_runner(model, probe_logits(model))
    assert isinstance(runner, BatchRunner)
    return runner, AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(3))
def test_whoever_comes_goes_or_waits_no_sequence_notices(
    tmp_path: Path, family: str, seed: int
) -> None:
    runner, model = load_pair(tmp_path / "m", family)
    assert (runner._stack is not None) == (family in STACKED)
    rng = random.Random(seed)
    living: list[tuple[Any, CachedDecoder]] = []
    for _ in range(60):
        if len(living) < 6 and rng.random() < 0.4:
            living.append((runner.open(), CachedDecoder(model)))
        chosen = [pair for pair in living if rng.random() < 0.7]
        if not chosen:
            continue
        # Chunks and single tokens in one step, as prompts join those who speak.
        fed = [[rng.randrange(200) for _ in range(rng.choice((1, 1, 1, 7)))] for _ in chosen]
        asks = [rng.random() < 0.8 for _ in chosen]
        feeds = [
            Feed(place, ids, ask) for (place, _), ids, ask in zip(chosen, fed, asks, strict=True)
        ]
        found = iter(runner.run(feeds))
        for (_, decoder), ids, ask in zip(chosen, fed, asks, strict=True):
            expected = decoder.feed(ids)
            if ask:
                torch.testing.assert_close(next(found), expected, rtol=1e-3, atol=1e-3)
        if living and rng.random() < 0.3:
            place, _ = living.pop(rng.randrange(len(living)))
            runner.release(place)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text"])
def test_a_sequence_far_longer_than_the_others_is_right_and_so_are_they(
    tmp_path: Path, family: str
) -> None:
    runner, model = load_pair(tmp_path / "m", family, max_position_embeddings=2048)
    lengths = (3, 1200, 5, 2)
    pairs = [(runner.open(), CachedDecoder(model)) for _ in lengths]
    for (place, decoder), length in zip(pairs, lengths, strict=True):
        prompt = [index * 7 % 200 for index in range(length)]
        runner.run([Feed(place, prompt)])
        decoder.feed(prompt)
    for token in (9, 4, 1):
        found = runner.run([Feed(place, [token]) for place, _ in pairs])
        for row, (_, decoder) in zip(found, pairs, strict=True):
            torch.testing.assert_close(row, decoder.feed([token]), rtol=1e-3, atol=1e-3)


def test_a_failed_step_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner, model = load_pair(tmp_path / "m", "llama")
    decoder, place = CachedDecoder(model), runner.open()
    runner.run([Feed(place, [1, 2, 3])])
    decoder.feed([1, 2, 3])
    forward = runner._forward
    with monkeypatch.context() as patch:

        def compute_and_fail(*arguments: Any) -> Any:
            forward(*arguments)
            raise RuntimeError("out of memory, say")

        patch.setattr(runner, "_forward", compute_and_fail)
        with pytest.raises(RuntimeError):
            runner.run([Feed(place, [9])])
    torch.testing.assert_close(runner.run([Feed(place, [4])])[0], decoder.feed([4]))


def test_the_last_to_leave_frees_the_cache(tmp_path: Path) -> None:
    runner, _ = load_pair(tmp_path / "m", "llama")
    places = [runner.open(), runner.open()]
    runner.run([Feed(place, [1, 2]) for place in places])
    assert runner.memory_bytes > 0
    for place in places:
        runner.release(place)
    assert runner.memory_bytes == 0


def test_memory_is_asked_for_before_it_is_taken_and_given_back(tmp_path: Path) -> None:
    runner, _ = load_pair(tmp_path / "m", "llama")
    memory = Ledger()
    runner.attach(memory, 2**20)
    places = [runner.open() for _ in range(3)]
    prompt = list(range(200)) * 2
    for place in places:
        runner.run([Feed(place, prompt)])
        assert memory.taken == runner.memory_bytes
        runner.keep(place, "", prompt)
    for place in places:
        runner.release(place)
        assert memory.taken == runner.memory_bytes
    assert runner.memory_bytes > 0
    assert runner.forget()
    assert memory.taken == runner.memory_bytes == 0


def test_a_cache_that_was_never_tried_out_asks_for_its_first_memory_too(
    llama_folder: Path, llama: LoadedModel
) -> None:
    again = load_model("llama", llama_folder, LoadConfig(device="cpu"), recipe=llama.recipe)
    runner, memory = again.runner, Ledger(room=0)
    runner.attach(memory, 0)
    place = runner.open()
    with pytest.raises(CacheFull):
        runner.run([Feed(place, [1, 2])])
    memory.room = 2**40
    runner.run([Feed(place, [1, 2])])
    assert memory.taken == runner.memory_bytes > 0
    runner.release(place)
    assert memory.taken == runner.memory_bytes == 0


def test_where_there_is_no_memory_nothing_is_appended(tmp_path: Path) -> None:
    runner, model = load_pair(tmp_path / "m", "llama", max_position_embeddings=2048)
    place, decoder = runner.open(), CachedDecoder(model)
    prompt = [index % 200 for index in range(300)]
    runner.run([Feed(place, prompt)])
    decoder.feed(prompt)
    runner.attach(Ledger(room=0), 0)
    with pytest.raises(CacheFull):
        runner.run([Feed(place, list(range(200)) * 3)])
    torch.testing.assert_close(
        runner.run([Feed(place, [4])])[0], decoder.feed([4]), rtol=1e-3, atol=1e-3
    )


def test_where_memory_is_short_the_cache_takes_no_more_than_it_needs(tmp_path: Path) -> None:
    runner, model = load_pair(tmp_path / "m", "llama", max_position_embeddings=2048)
    place, decoder = runner.open(), CachedDecoder(model)
    runner.run([Feed(place, [1] * 250)])
    decoder.feed([1] * 250)
    # Room for 64 tokens more, where the cache would like to double.
    runner.attach(Ledger(room=runner._cache.token_bytes * 64), 0)
    found = runner.run([Feed(place, [2] * 40)])[0]
    torch.testing.assert_close(found, decoder.feed([2] * 40), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_a_beginning_that_comes_again_is_not_computed_again(tmp_path: Path, family: str) -> None:
    runner, model = load_pair(tmp_path / "m", family)
    runner.attach(Ledger(), 2**20)
    shared = [index * 3 % 200 for index in range(2 * BLOCK_TOKENS + 5)]
    first = runner.open()
    runner.run([Feed(first, [*shared, 7, 8])])
    runner.keep(first, "alice", [*shared, 7, 8])
    runner.release(first)
    second, prompt = runner.open(), [*shared, 9, 10, 11]
    recalled = runner.recall(second, "alice", prompt)
    assert recalled == 2 * BLOCK_TOKENS
    found = runner.run([Feed(second, prompt[recalled:])])[0]
    torch.testing.assert_close(found, CachedDecoder(model).feed(prompt), rtol=1e-3, atol=1e-3)
    assert runner.recall(runner.open(), "bob", prompt) == 0
