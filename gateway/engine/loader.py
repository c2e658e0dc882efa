"""Loads a model folder with transformers: safetensors only, no code from the folder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import msgspec

from gateway.core.cards import read_context_length
from gateway.core.errors import ModelLoadFailed
from gateway.engine.prompt import PromptEncoder
from gateway.engine.runner import Runner, choose_runner
from gateway.engine.runtime import import_torch
from gateway.engine.sampler import Sampling, resolve_sampling

logger = logging.getLogger(__name__)


UNKNOWN_CONTEXT = 2**20
"""Tokens allowed to a model whose config names no limit (state-space models have none)."""


class LoadConfig(msgspec.Struct, frozen=True):
    """How to load; `auto` takes the best device there is and the dtype of the files."""

    device: str = "auto"
    dtype: str = "auto"
    threads: int = 0


class LoadedModel(msgspec.Struct, frozen=True):
    """A model in memory. `memory_bytes` is what its weights and buffers take."""

    model: Any
    runner: Runner
    encoder: PromptEncoder
    eos_ids: frozenset[int]
    vocabulary_size: int
    context_length: int
    memory_bytes: int
    device: str
    dtype: str

    def sampling(self, options: Any) -> Sampling:
        return resolve_sampling(options, self.model.generation_config)


def load_model(name: str, path: Path, config: LoadConfig) -> LoadedModel:
    """Load the causal language model in `path`. Blocking; takes seconds.

    Raises ModelLoadFailed with the reason for a person.
    """
    if not any(path.glob("*.safetensors")):
        raise ModelLoadFailed(
            f"{name} has no safetensors files.",
            hint="Only safetensors are loaded: other formats can run code.",
        )
    import_torch()
    device = _choose_device(config.device)
    try:
        model, tokenizer = _load(path, config.dtype, device)
    except Exception as error:  # transformers raises anything; the edge of its world is here
        logger.exception("loading %s failed", name)
        raise ModelLoadFailed(f"{name} could not be loaded: {_first_line(error)}") from error
    return LoadedModel(
        model=model,
        runner=choose_runner(model),
        encoder=PromptEncoder(tokenizer),
        eos_ids=_eos_ids(model, tokenizer),
        vocabulary_size=model.get_input_embeddings().num_embeddings,
        context_length=read_context_length(model.config.to_dict()) or UNKNOWN_CONTEXT,
        memory_bytes=_tensor_bytes(model),
        device=device,
        dtype=str(model.dtype).removeprefix("torch."),
    )


def _load(path: Path, dtype: str, device: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = {"local_files_only": True, "trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(path, **options)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, use_safetensors=True, **options)
    return model.to(device).eval(), tokenizer


def _choose_device(wanted: str) -> str:
    import torch

    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _eos_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    own = model.generation_config.eos_token_id
    ids = set(own) if isinstance(own, list) else {own}
    return frozenset(int(eos) for eos in ids | {tokenizer.eos_token_id} if eos is not None)


def _tensor_bytes(model: Any) -> int:
    tensors = {t.data_ptr(): t for t in (*model.parameters(), *model.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    sentence = (lines[0] if lines else type(error).__name__)[:300]
    return sentence if sentence.endswith((".", "!", "?")) else f"{sentence}."
