"""The engine on a CUDA GPU: what it says, what it records, what it takes and gives back."""

import gc
import random
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch

from gateway.core.events import Generation
from gateway.core.loading import LoadConfig
from gateway.engine.decoding import attention
from gateway.engine.decoding.graphs import CAPTURE_AFTER, CudaRecorder, DecodeGraphs
from gateway.engine.decoding.kernels import FIRST_CAPABILITY, find_kernel
from gateway.engine.decoding.loaded import LoadedModel
from gateway.engine.decoding.prompt_cache import BLOCK_TOKENS
from gateway.engine.decoding.runner import BatchRunner, Feed
from gateway.engine.decoding.stack import Stack
from gateway.engine.loading.loader import load_model
from gateway.engine.weights.runtime import default_budget, give_back_memory
from tests.integration.engine.conftest import StartEngine, ask
from tests.integration.engine.ledger import Ledger
from tests.integration.engine.reference import generated_by_transformers
from tests.tiny_models import build_model
from tests.told import collect

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU"),
]
DEVICE = "cuda"
LARGER = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.05,
    "max_position_embeddings": 2048,
}
"""Heads of 64 numbers, as real models have."""
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"head_dim": 8},
    "mistral": {"sliding_window": 16},
    "gemma2": {"head_dim": 8, "sliding_window": 16, "attn_logit_softcapping": 2.0},
    "gpt2": {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 256},
}


def load(folder: Path, dtype: Any = "float32") -> LoadedModel:
    return load_model("tiny", folder, LoadConfig(device=DEVICE, dtype=dtype))


def graphs_of(runner: Any) -> DecodeGraphs:
    assert isinstance(runner, BatchRunner)
    assert runner._graphs is not None
    return runner._graphs


def decode(runner: Any, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    """Return what is likeliest after each prompt, all of them side by side."""
    places = [runner.open() for _ in prompts]
    answers: list[list[int]] = [[] for _ in prompts]
    fed = prompts
    for _ in range(tokens):
        logits = runner.run([Feed(place, ids) for place, ids in zip(places, fed, strict=True)])
        fed = [[token] for token in logits.argmax(-1).tolist()]
        for answer, token in zip(answers, fed, strict=True):
            answer += token
    for place in places:
        runner.release(place)
    return answers


@pytest.mark.parametrize("family", FAMILIES)
async def test_in_float32_streams_side_by_side_say_what_generate_says(
    tmp_path: Path, family: str, start_engine: StartEngine
) -> None:
    folder = build_model(tmp_path / "m", family=family, **FAMILIES[family])
    loaded = load(folder)
    assert loaded.recipe.way in ("stack", "batch")
    requests = [ask("x" * 17 * n, max_tokens=12 + 5 * n) for n in range(6)]
    answers: dict[int, Generation] = {}

    async def run(index: int) -> None:
        answers[index] = await collect(engine.stream(requests[index]))

    async with start_engine(loaded, max_active=4) as engine, anyio.create_task_group() as tasks:
        for index in range(len(requests)):
            tasks.start_soon(run, index)
    for index, request in enumerate(requests):
        assert answers[index].text == generated_by_transformers(folder, loaded, request)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_in_bfloat16_the_flat_stack_is_near_to_the_model(tmp_path: Path, family: str) -> None:
    from transformers import AutoModelForCausalLM

    sizes = {**LARGER, **({"sliding_window": 100} if family == "mistral" else {})}
    folder = build_model(tmp_path / "m", family=family, dtype=torch.bfloat16, **sizes)
    loaded = load(folder, "bfloat16")
    assert loaded.recipe.way == "stack"
    model = AutoModelForCausalLM.from_pretrained(folder).to(DEVICE).eval()
    runner, rng = loaded.runner, random.Random(1)
    known = [[rng.randrange(200) for _ in range(length)] for length in (3, 150, 700)]
    places = [runner.open() for _ in known]
    fed = [list(prompt) for prompt in known]
    for _ in range(2 * CAPTURE_AFTER + 4):
        found = runner.run([Feed(place, ids) for place, ids in zip(places, fed, strict=True)])
        for logits, ids in zip(found, known, strict=True):
            with torch.inference_mode():
                expected = model(torch.tensor([ids], device=DEVICE)).logits[0, -1].float()
            atol = 5e-2 * float(expected.abs().max())
            torch.testing.assert_close(logits.float(), expected, rtol=5e-2, atol=atol)
        fed = [[rng.randrange(200)] for _ in known]
        for ids, token in zip(known, fed, strict=True):
            ids += token
    assert graphs_of(runner)._graphs


def test_attention_to_unlike_lengths_is_found_where_the_gpu_has_it() -> None:
    is_new = torch.cuda.get_device_capability()[0] >= FIRST_CAPABILITY
    device = torch.device(DEVICE, 0)
    assert (find_kernel(device, torch.bfloat16) is not None) == is_new
    assert find_kernel(device, torch.float32) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_replayed_steps_say_what_eager_ones_say_whoever_comes_goes_or_waits(
    tmp_path: Path, family: str, dtype: Any
) -> None:
    from transformers import AutoModelForCausalLM

    folder = build_model(tmp_path / "m", family=family, dtype=dtype, **LARGER)
    model = AutoModelForCausalLM.from_pretrained(folder).to(DEVICE).eval()
    attention.register()
    model.set_attn_implementation(attention.NAME)
    stack, kernel = Stack(model), find_kernel(model.device, dtype)
    record = partial(CudaRecorder, model.device)
    replaying = BatchRunner(model, stack, kernel=kernel, recorder=record)
    eager = BatchRunner(model, stack, kernel=kernel)
    rng, most = random.Random(3), 0
    living: list[tuple[Any, Any]] = []
    tolerance = 1e-3 if dtype == torch.float32 else 5e-2
    for _ in range(400):
        if len(living) < 6 and rng.random() < 0.05:
            living.append((replaying.open(), eager.open()))
            prompt = [rng.randrange(200) for _ in range(rng.choice((1, 3, 60, 400)))]
            for runner, place in zip((replaying, eager), living[-1], strict=True):
                runner.run([Feed(place, prompt)])
        chosen = [pair for pair in living if rng.random() < 0.9]
        if not chosen:
            continue
        tokens = [rng.randrange(200) for _ in chosen]
        found, expected = (
            runner.run([Feed(pair[own], [t]) for pair, t in zip(chosen, tokens, strict=True)])
            for own, runner in enumerate((replaying, eager))
        )
        atol = tolerance * float(expected.abs().max())
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=atol)
        most = max(most, len(graphs_of(replaying)._graphs))
        if rng.random() < 0.02:
            for runner, place in zip(
                (replaying, eager), living.pop(rng.randrange(len(living))), strict=True
            ):
                runner.release(place)
    assert graphs_of(replaying)._works
    assert most > 1


def test_a_beginning_that_comes_again_is_not_computed_again(tmp_path: Path) -> None:
    loaded = load(build_model(tmp_path / "m"))
    runner: Any = loaded.runner
    runner.attach(Ledger(), 2**20)
    prompt = [index * 3 % 200 for index in range(2 * BLOCK_TOKENS + 5)]
    first = runner.open()
    expected = runner.run([Feed(first, prompt)])[0].clone()
    runner.keep(first, "alice", prompt)
    runner.release(first)
    again = runner.open()
    recalled = runner.recall(again, "alice", prompt)
    assert recalled == 2 * BLOCK_TOKENS
    found = runner.run([Feed(again, prompt[recalled:])])[0]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_what_is_counted_is_what_the_gpu_has_given(tmp_path: Path) -> None:
    loaded = load(build_model(tmp_path / "m", dtype=torch.bfloat16, **LARGER), "bfloat16")
    runner, memory = loaded.runner, Ledger()
    runner.attach(memory, 0)
    decode(runner, [[1, 2, 3]], 4)  # what libraries take for themselves
    before = torch.cuda.memory_allocated()
    place = runner.open()
    runner.run([Feed(place, [1] * 1500)])
    held = torch.cuda.memory_allocated() - before
    assert memory.taken == runner.memory_bytes > 0
    assert runner.memory_bytes * 0.9 <= held <= runner.memory_bytes * 1.1 + 2**20
    for _ in range(CAPTURE_AFTER + 2):
        runner.run([Feed(place, [1])])
    assert graphs_of(runner).memory_bytes > 0
    assert memory.taken == runner.memory_bytes
    runner.release(place)
    assert memory.taken == runner.memory_bytes == 0


def test_the_budget_of_a_gpu_is_most_of_its_memory() -> None:
    total = torch.cuda.get_device_properties(0).total_memory
    assert 0.5 * total < default_budget("cuda:0") < total


async def test_a_model_that_is_unloaded_gives_the_gpu_its_memory_back(
    tmp_path: Path, start_engine: StartEngine
) -> None:
    folder = build_model(tmp_path / "m", dtype=torch.bfloat16, **{**LARGER, "hidden_size": 2048})
    left = []
    for _ in range(3):
        loaded = load(folder, "bfloat16")
        assert torch.cuda.memory_allocated() > loaded.memory_bytes * 0.9
        async with start_engine(loaded) as engine:
            await collect(engine.stream(ask(max_tokens=40)))
        size = loaded.memory_bytes
        del loaded, engine
        gc.collect()
        give_back_memory()
        left.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))
    # The first load is when libraries take what they keep.
    assert left[2][0] - left[0][0] < size / 10
    assert left[2][1] - left[0][1] < size / 10
