"""Every architecture says through the engine what transformers' own generate says."""

import logging
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
import pytest

from gateway.core.events import Generation, TextDelta
from gateway.core.loading import LoadConfig
from gateway.engine.loading.loader import load_model
from tests.integration.engine.conftest import StartEngine, ask
from tests.integration.engine.reference import generated_by_transformers
from tests.tiny_models import build_model
from tests.told import collect

SMALL_HEADS = {"head_dim": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
MAMBA2 = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_chunk_size": 8,
    "mamba_n_groups": 1,
}
DELTA_NET = {
    **SMALL_HEADS,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}

STACKED = "stack"
BATCHED = "batch"
CACHED = "cache"
WHOLE_PROMPT = "whole prompt"
RECOMPUTED = "recompute"

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": (STACKED, {}),
    "mistral": (STACKED, {"sliding_window": 16}),
    "phi3": (STACKED, {"sliding_window": 16}),
    "qwen2": (STACKED, {}),
    "qwen3": (STACKED, SMALL_HEADS),
    "gemma2": (BATCHED, {**SMALL_HEADS, "sliding_window": 16}),
    "gemma3_text": (BATCHED, {**SMALL_HEADS, "sliding_window": 16}),
    "gpt2": (BATCHED, {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 256}),
    "gpt_neox": (BATCHED, {}),
    "olmo2": (BATCHED, {}),
    "starcoder2": (BATCHED, {"sliding_window": 16}),
    "smollm3": (BATCHED, {}),
    "granite": (BATCHED, {}),
    "cohere2": (BATCHED, {"sliding_window": 16}),
    "opt": (BATCHED, {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "mixtral": (BATCHED, {"num_local_experts": 2}),
    "qwen3_moe": (BATCHED, {**SMALL_HEADS, **EXPERTS}),
    "gpt_oss": (CACHED, {**SMALL_HEADS, "num_local_experts": 4, "sliding_window": 16}),
    # Their windows are told by masks alone, and are wider than a probe is long.
    "qwen2_moe": (
        CACHED,
        {
            **EXPERTS,
            "shared_expert_intermediate_size": 32,
            "use_sliding_window": True,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "llama4_text": (
        CACHED,
        {
            **SMALL_HEADS,
            "attention_chunk_size": 16,
            "num_local_experts": 2,
            "intermediate_size_mlp": 32,
        },
    ),
    "falcon": (CACHED, {}),
    "bloom": (CACHED, {"n_head": 4, "n_layer": 2}),
    "stablelm": (CACHED, {}),
    "mamba2": (CACHED, {"state_size": 8, "head_dim": 8, "num_heads": 8, "n_groups": 2}),
    "bamba": (CACHED, {**MAMBA2, "attn_layer_indices": [1]}),
    "falcon_h1": (CACHED, {**SMALL_HEADS, **MAMBA2, "mamba_d_ssm": 64}),
    "granitemoehybrid": (
        CACHED,
        {
            **MAMBA2,
            "layer_types": ["mamba", "attention"],
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "shared_intermediate_size": 32,
        },
    ),
    "qwen3_next": (CACHED, {**DELTA_NET, **EXPERTS, "shared_expert_intermediate_size": 32}),
    "qwen3_5_text": (CACHED, DELTA_NET),
    "lfm2": (CACHED, {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8}),
    "zamba2": (
        CACHED,
        {
            "mamba_d_state": 8,
            "n_mamba_heads": 8,
            "mamba_headdim": 8,
            "chunk_size": 8,
            "layers_block_type": ["mamba", "hybrid"],
            "hybrid_layer_ids": [1],
            "num_mem_blocks": 1,
            "num_key_value_heads": 4,
            # transformers bounds the time step of a prompt by it, but not that of an answer.
            "time_step_min": 1e-9,
        },
    ),
    "mamba": (WHOLE_PROMPT, {"state_size": 4}),
    "falcon_mamba": (WHOLE_PROMPT, {"state_size": 4}),
    "jamba": (
        WHOLE_PROMPT,
        {
            "num_experts": 2,
            "mamba_d_state": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
        },
    ),
    # Its layers keep the state of whoever came last on themselves.
    "recurrent_gemma": (
        RECOMPUTED,
        {"lru_width": 32, "block_types": ["recurrent", "attention"], "attention_window_size": 16},
    ),
    # transformers has no cache for its state that another call could be given.
    "rwkv": (RECOMPUTED, {"attention_hidden_size": 32}),
}


@pytest.mark.parametrize("family", FAMILIES)
async def test_alone_and_in_company_every_family_says_what_generate_says(
    family: str, tmp_path: Path, start_engine: StartEngine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    way, options = FAMILIES[family]
    folder = build_model(tmp_path / family, family=family, **options)
    loaded = load_model(family, folder, LoadConfig(device="cpu"))
    assert loaded.recipe.way == way, caplog.text
    # Shorter and longer than a window, a chunk, a convolution; more of them than places.
    requests = [ask("x" * length, max_tokens=40 - 3 * length % 23) for length in (1, 60, 9, 31, 2)]
    answers: dict[int, Generation] = {}

    async def run(index: int) -> None:
        answers[index] = await collect(engine.stream(requests[index]))

    async def leave_early() -> None:
        async with aclosing(engine.stream(ask("I must go " * 5, max_tokens=90))) as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    return

    async with start_engine(loaded, max_active=3) as engine:
        alone = await collect(engine.stream(requests[1]))
        async with anyio.create_task_group() as tasks:
            for index in range(len(requests)):
                tasks.start_soon(run, index)
                tasks.start_soon(leave_early)
    expected = [generated_by_transformers(folder, loaded, request) for request in requests]
    assert alone.text == expected[1]
    assert [answers[index].text for index in range(len(requests))] == expected
    assert alone.usage.prompt_tokens == len(loaded.encoder.encode(requests[1]))
