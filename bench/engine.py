"""Tokens a second of the in-process engine: plain and packed linear layers, one by one and batched.

Random weights of SmolLM2-135M's shape in bfloat16, on this machine's CPU. All variants are loaded
in one process and take turns, so that what else the machine does hits them alike.

    python -m bench.engine
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio

from gateway.core.events import Started, collect
from gateway.core.loading import LoadConfig
from gateway.core.messages import GenerateRequest, Options
from gateway.core.names import ModelRef
from gateway.engine import loader
from gateway.engine.engine import TransformersEngine
from gateway.engine.loader import LoadedModel, load_model
from gateway.engine.runner import SerialRunner
from gateway.engine.runtime import import_torch
from tests.tiny_models import build_tokenizer

PROMPT_TOKENS = 128
NEW_TOKENS = 48
STREAMS = (1, 4, 16)
ROUNDS = 3


def write_model(folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    build_tokenizer(folder)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=49151,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def load_variants(folder: Path) -> dict[str, LoadedModel]:
    config = LoadConfig(device="cpu")
    packed = load_model("packed", folder, config)
    pack: Callable[..., tuple[Any, int]] = loader._pack
    loader._pack = lambda model, reload: (model, 0)
    try:
        plain = load_model("plain", folder, config)
        serial = load_model("serial", folder, config)
    finally:
        loader._pack = pack
    serial.model.set_attn_implementation("sdpa")
    one_by_one = {"runner": SerialRunner(serial.model)}
    fields = {name: getattr(serial, name) for name in LoadedModel.__struct_fields__}
    return {
        "plain, one by one": LoadedModel(**(fields | one_by_one)),
        "plain, batched": plain,
        "packed, batched": packed,
    }


async def measure(loaded: LoadedModel, streams: int) -> tuple[float, float]:
    """Return tokens a second over all streams, and the median time to the first token."""
    engine = TransformersEngine(
        ModelRef("huggingface", "bench"), loaded, max_active=streams, max_queue=0
    )
    firsts: list[float] = []

    async def run(index: int) -> None:
        began = time.perf_counter()
        request = GenerateRequest(
            id="bench",
            model="bench",
            prompt=chr(65 + index % 26) * PROMPT_TOKENS,
            raw=True,
            options=Options(max_tokens=NEW_TOKENS, temperature=0),
        )

        async def watched() -> Any:
            async for event in engine.stream(request):
                if isinstance(event, Started):
                    firsts.append(time.perf_counter() - began)
                yield event

        answer = await collect(watched())
        assert answer.usage.completion_tokens == NEW_TOKENS, "a stream ended early"

    began = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        for index in range(streams):
            tasks.start_soon(run, index)
    elapsed = time.perf_counter() - began
    await engine.aclose()
    return streams * NEW_TOKENS / elapsed, statistics.median(firsts)


async def compare(variants: dict[str, LoadedModel]) -> dict[str, dict[int, tuple[float, float]]]:
    found: dict[str, dict[int, list[tuple[float, float]]]] = {
        name: {streams: [] for streams in STREAMS} for name in variants
    }
    for streams in STREAMS:
        for _ in range(ROUNDS):
            for name, loaded in variants.items():
                found[name][streams].append(await measure(loaded, streams))
    return {
        name: {
            streams: (statistics.median(r for r, _ in runs), statistics.median(t for _, t in runs))
            for streams, runs in by_streams.items()
        }
        for name, by_streams in found.items()
    }


def main() -> None:
    import_torch()
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder))
        results = anyio.run(compare, load_variants(Path(folder)))
    head = " | ".join(f"{streams} streams" for streams in STREAMS)
    sys.stdout.write(f"| tokens/s (TTFT s) | {head} |\n|---|{'---|' * len(STREAMS)}\n")
    for name, cells in results.items():
        row = " | ".join(f"{cells[n][0]:.1f} ({cells[n][1]:.2f})" for n in STREAMS)
        sys.stdout.write(f"| {name} | {row} |\n")
    sys.stdout.write(json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
