"""What a load will take, told from the model's files before it begins: reads only their headers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from gateway.core.loading import LoadConfig, dtype_bytes, estimate_bytes
from gateway.core.models import LocalModel
from gateway.engine.files.batch_needs import EMBEDDER_TOKENS, read_batch_needs
from gateway.engine.files.gguf_needs import context_bytes
from gateway.engine.files.mapped import STEP_BYTES
from gateway.engine.files.progress import read_tensor_sizes
from gateway.engine.files.siblings import SHARED_INPUT
from gateway.engine.memory.memory import FIRST_CAPACITY

_JOINED = {name: "+".join(siblings) for siblings in SHARED_INPUT for name in siblings}
"""What a layer becomes one product with."""
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
_READERS = 4
"""Threads by which transformers converts weights, each with one in both dtypes."""


class Setup(msgspec.Struct, frozen=True):
    """How models are run here, as far as it takes memory: room is set aside for so many sequences
    of a GGUF model, of so many tokens each (1 and 0: for none but what its own config says);
    `process_bytes` is what the process of a model takes before any model is in it."""

    gguf_sequences: int = 1
    gguf_context_length: int = 0
    process_bytes: int = 0


def estimate_load(files: LocalModel, config: LoadConfig, setup: Setup = Setup()) -> int:  # noqa: B008
    """Return the most bytes that a load takes at any moment, and with it the first short sequence
    or batch, all that is set aside for later ones, and the process if the model has its own.

    Blocking: reads headers. What cannot be known is left out.
    """
    if files.card.format == "gguf":
        length = config.context_length or setup.gguf_context_length
        model = files.size_bytes + context_bytes(Path(files.path), length, setup.gguf_sequences)
    elif files.card.embeds:
        model = _estimate_embedder(files, config)
    else:
        model = _estimate_generator(files, config)
    return model + setup.process_bytes


def _estimate_embedder(files: LocalModel, config: LoadConfig) -> int:
    weights = estimate_bytes(files.size_bytes, files.card.dtype, config.dtype)
    width = dtype_bytes(config.dtype) or dtype_bytes(files.card.dtype) or 4
    stored = read_tensor_sizes(Path(files.path))
    working = _converting_bytes(files, stored) if weights != files.size_bytes else 0
    needs = read_batch_needs(_read_config(Path(files.path)), width)
    most = files.card.context_length or EMBEDDER_TOKENS
    return weights + max(working, needs.usual_bytes(EMBEDDER_TOKENS, most))


def _converting_bytes(files: LocalModel, stored: Mapping[str, int]) -> int:
    """Return what is there in both dtypes while weights are converted."""
    return min(files.size_bytes, STEP_BYTES) + _READERS * max(stored.values(), default=0)


def _estimate_generator(files: LocalModel, config: LoadConfig) -> int:
    """Weights are packed or quantized product by product, so beside all of them there is one more
    product in both forms at the most."""
    weights = estimate_bytes(files.size_bytes, files.card.dtype, config.dtype)
    if files.card.format == "pickle":
        return 2 * weights  # all of them at once, as they are stored and as they are used
    folder = Path(files.path)
    stored = read_tensor_sizes(folder)
    sizes = {
        name: estimate_bytes(size, files.card.dtype, config.dtype) for name, size in stored.items()
    }
    width = dtype_bytes(config.dtype) or dtype_bytes(files.card.dtype) or 4
    if config.quantization == "none" and width == 2:
        weights += _tied_head(sizes)
    # What is quantized is a number of 4 bytes on its way.
    forms = 2 if config.quantization == "none" else 1 + 4 // width
    working = forms * _largest_product(sizes) + min(files.size_bytes, STEP_BYTES)
    if sizes != stored:
        # On a busy machine two more were seen read than the slower way of quantizing had taken.
        ahead = 0 if config.quantization == "none" else 2
        working += (_READERS + ahead) * max(stored.values(), default=0)
    return weights + max(working, _first_bytes(folder, width))


def _tied_head(sizes: Mapping[str, int]) -> int:
    """Return what packing adds where the embedding is the output layer, too: it stays as it is."""
    if any(name.endswith("lm_head.weight") for name in sizes):
        return 0
    return max((size for name, size in sizes.items() if name.endswith(_EMBEDDINGS)), default=0)


def _largest_product(sizes: Mapping[str, int]) -> int:
    products: dict[str, int] = {}
    for name, size in sizes.items():
        path = name.split(".")
        product = ".".join(_JOINED.get(part, part) for part in path)
        products[product] = products.get(product, 0) + size
    return max(products.values(), default=0)


def _first_bytes(folder: Path, width: int) -> int:
    """Return what the keys and values of a first sequence take, of a model that keeps such."""
    config = _read_config(folder)
    try:
        return FIRST_CAPACITY * 2 * _key_numbers(config.get("text_config") or config) * width
    except (ValueError, AttributeError, TypeError, ZeroDivisionError):
        return 0


def _read_config(folder: Path) -> Mapping[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def _key_numbers(config: Mapping[str, Any]) -> int:
    """Return how many numbers the keys of one token have in all layers."""
    heads = config.get("num_attention_heads") or 0
    size = config.get("head_dim") or (config.get("hidden_size") or 0) // (heads or 1)
    return int(
        (config.get("num_hidden_layers") or 0) * (config.get("num_key_value_heads") or heads) * size
    )
