"""What a load will take, told from the model's files before it begins: reads only their headers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gateway.core.loading import LoadConfig, dtype_bytes, estimate_bytes
from gateway.core.models import LocalModel
from gateway.engine.mapped import STEP_BYTES
from gateway.engine.memory import FIRST_CAPACITY
from gateway.engine.progress import read_tensor_sizes
from gateway.engine.siblings import SHARED_INPUT

_JOINED = {name: "+".join(siblings) for siblings in SHARED_INPUT for name in siblings}
"""What a layer becomes one product with."""
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
_READERS = 4
"""Threads by which transformers converts weights, each with one in both dtypes."""


def estimate_load(files: LocalModel, config: LoadConfig) -> int:
    """Return the most bytes that a load takes at any moment, and with it the first short sequence.

    Blocking. Weights are packed or quantized product by product, so beside all of them there is
    one more product in both forms at the most; what cannot be known is left out.
    """
    weights = estimate_bytes(files.size_bytes, files.card.dtype, config.dtype)
    if files.card.format != "safetensors" or files.card.embeds:
        return weights
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
        working += _READERS * max(stored.values(), default=0)
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
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return FIRST_CAPACITY * 2 * _key_numbers(config.get("text_config") or config) * width
    except (OSError, ValueError, AttributeError, TypeError, RecursionError, ZeroDivisionError):
        return 0


def _key_numbers(config: Mapping[str, Any]) -> int:
    """Return how many numbers the keys of one token have in all layers."""
    heads = config.get("num_attention_heads") or 0
    size = config.get("head_dim") or (config.get("hidden_size") or 0) // (heads or 1)
    return int(
        (config.get("num_hidden_layers") or 0) * (config.get("num_key_value_heads") or heads) * size
    )
