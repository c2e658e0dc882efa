"""A model in memory, and how it is run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import msgspec

from gateway.engine.decoding.runner import Runner
from gateway.engine.sampling.sampling import Sampling, resolve_sampling
from gateway.engine.text.prompt import PromptEncoder
from gateway.engine.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from gateway.engine.weights.packing import Packing

Way = Literal["stack", "batch", "cache", "whole prompt", "recompute", "vision"]
"""How a model is run: by the flat stack, in batches by its own forward pass, or one by one."""


class Recipe(msgspec.Struct, frozen=True):
    """How a model is best run, as was found out by trying: with its linear layers packed or not,
    and by which runner."""

    packs: bool = False
    way: Way = "recompute"


class LoadedModel(msgspec.Struct, frozen=True):
    """A model in memory. `memory_bytes` is what its weights, packed or not, its buffers and its
    runner take, `first_bytes` what one short sequence takes besides. `packing` is what is left to
    be packed."""

    model: Any
    runner: Runner
    recipe: Recipe
    encoder: PromptEncoder
    vocabulary: Vocabulary
    eos_ids: frozenset[int]
    vocabulary_size: int
    context_length: int
    memory_bytes: int
    first_bytes: int
    device: str
    dtype: str
    packing: Packing | None = None

    def sampling(self, options: Any) -> Sampling:
        return resolve_sampling(options, self.model.generation_config)
