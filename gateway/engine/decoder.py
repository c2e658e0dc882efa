"""Runs one sequence through a model: prompt in, logits out, the cache in between."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Decoder(Protocol):
    """State of one sequence in one model; used by one thread."""

    def feed(self, ids: list[int], asks: bool = True) -> Tensor:
        """Append `ids` and return the logits after the last of them, of shape [vocabulary]; they
        count only if the caller `asks`."""
        ...


class CachedDecoder:
    """Keeps keys and values: each call computes only what is new."""

    def __init__(self, model: Any) -> None:
        from transformers import DynamicCache

        self._model = model
        self._cache = DynamicCache(config=model.config)

    def feed(self, ids: list[int], asks: bool = True) -> Tensor:
        import torch

        inputs = torch.tensor([ids], device=self._model.device)
        with torch.inference_mode():
            output = self._model(
                inputs, past_key_values=self._cache, use_cache=True, logits_to_keep=1
            )
        logits: Tensor = output.logits[0, -1]
        return logits


class RecomputingDecoder:
    """For models whose state is not a key-value cache: slower with every token, and right."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._ids: list[int] = []

    def feed(self, ids: list[int], asks: bool = True) -> Tensor:
        import torch

        self._ids += ids
        if not asks:
            return torch.empty(0)
        inputs = torch.tensor([self._ids], device=self._model.device)
        with torch.inference_mode():
            output = self._model(inputs, use_cache=False)
        logits: Tensor = output.logits[0, -1]
        return logits


def new_decoder(model: Any) -> Decoder:
    """Return the fastest decoder that is right for `model`."""
    keeps_keys_and_values = getattr(model, "_supports_default_dynamic_cache", lambda: False)()
    if keeps_keys_and_values and not getattr(model, "_is_stateful", False):
        return CachedDecoder(model)
    return RecomputingDecoder(model)
