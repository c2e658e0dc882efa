"""Runs one sequence through a model: prompt in, logits out, the state in between."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from gateway.engine.decoding.state import held_bytes
from gateway.engine.text.processor import takes_images

if TYPE_CHECKING:
    from torch import Tensor


class Decoder(Protocol):
    """State of one sequence in one model; used by one thread."""

    @property
    def waiting(self) -> int:
        """How many tokens it was fed that it has yet to compute."""
        ...

    @property
    def memory_bytes(self) -> int:
        """What the state takes now."""
        ...

    def feed(self, ids: list[int], asks: bool = True) -> Tensor:
        """Append `ids` and return the logits after the last of them, of shape [vocabulary]; they
        count only if the caller `asks`. A decoder that raised is of no more use."""
        ...


class CachedDecoder:
    """Keeps what `generate` would keep (keys and values, states): computes only what is new."""

    def __init__(self, model: Any) -> None:
        from transformers import DynamicCache

        self._model = model
        self._known = _parameters(model)
        self._cache = DynamicCache(config=model.config.get_text_config(decoder=True))
        self._length = 0

    @property
    def waiting(self) -> int:
        return 0

    @property
    def memory_bytes(self) -> int:
        return held_bytes(self._cache)

    def feed(self, ids: list[int], asks: bool = True) -> Tensor:
        import torch

        device = self._model.device
        name = "cache_params" if "cache_params" in self._known else "past_key_values"
        options: dict[str, Any] = {name: self._cache}
        if "position_ids" in self._known:
            # Left to themselves, some models count from 0 in every call.
            end = self._length + len(ids)
            options["position_ids"] = torch.arange(self._length, end, device=device)[None]
        if "logits_to_keep" in self._known:
            options["logits_to_keep"] = 1
        with torch.inference_mode():
            output = self._model(torch.tensor([ids], device=device), use_cache=True, **options)
        self._length += len(ids)
        logits: Tensor = output.logits[0, -1]
        return logits


class WholePromptDecoder(CachedDecoder):
    """For models that take many tokens only into an empty state: the prompt waits until all of it
    is there, and what follows goes token by token."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._waiting: list[int] = []

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def feed(self, ids: list[int], asks: bool = True) -> Tensor:
        import torch

        self._waiting += ids
        if not asks:
            return torch.empty(0)
        whole, self._waiting = self._waiting, []
        if not self._length:
            return super().feed(whole)
        return [super(WholePromptDecoder, self).feed([token]) for token in whole][-1]


class RecomputingDecoder:
    """The plain forward pass over everything, each time: slower with every token, and right."""

    waiting = 0
    memory_bytes = 0

    def __init__(self, model: Any) -> None:
        self._model = model
        self._ids: list[int] = []

    def feed(self, ids: list[int], asks: bool = True) -> Tensor:
        import torch

        self._ids += ids
        if not asks:
            return torch.empty(0)
        inputs = torch.tensor([self._ids], device=self._model.device)
        options = {"logits_to_keep": 1} if "logits_to_keep" in _parameters(self._model) else {}
        with torch.inference_mode():
            output = self._model(inputs, use_cache=False, **options)
        logits: Tensor = output.logits[0, -1]
        return logits


class VisionDecoder:
    """Steps a model of images and text as its own `generate` does, by the hooks that `generate`
    calls: they know a family's positions, masks and which inputs belong to the first step.

    All state is here. What some models keep on themselves between steps (the shift of their
    multimodal positions, say) would be another sequence's; it is never read, as every step is
    given its positions.
    """

    waiting = 0

    def __init__(self, model: Any, inputs: Mapping[str, Any] | None = None) -> None:
        """`inputs` is what the processor made beside the ids: pixels, and tensors by token. The
        ids of a prompt that has some must come in one piece."""
        import torch
        from transformers import DynamicCache

        self._model = model
        self._ids = torch.empty((1, 0), dtype=torch.long, device=model.device)
        self._output: Any = None
        self._state: dict[str, Any] = {
            "past_key_values": DynamicCache(config=model.config.get_text_config(decoder=True)),
            "use_cache": True,
            **{name: _placed(tensor, model) for name, tensor in (inputs or {}).items()},
        }
        if model._supports_logits_to_keep():
            self._state["logits_to_keep"] = 1

    @property
    def memory_bytes(self) -> int:
        return held_bytes(self._ids, self._output, self._state)

    def feed(self, ids: list[int], asks: bool = True) -> Tensor:
        import torch

        new = torch.tensor([ids], device=self._model.device)
        is_first = self._output is None
        with torch.inference_mode():
            self._ids = torch.cat([self._ids, new], dim=1)
            if is_first:
                # Without an attention mask, as in `generate`: nothing here is padding.
                self._state["position_ids"] = self._model._prepare_position_ids_for_generation(
                    self._ids, self._state
                )
            else:
                self._state = self._model._update_model_kwargs_for_generation(
                    self._output, self._state, is_encoder_decoder=False, num_new_tokens=len(ids)
                )
            inputs = self._model.prepare_inputs_for_generation(
                self._ids, next_sequence_length=len(ids), is_first_iteration=is_first, **self._state
            )
            self._output = self._model(**inputs, return_dict=True)
        if is_first:
            self._forget_pixels()
        logits: Tensor = self._output.logits[0, -1]
        return logits

    def _forget_pixels(self) -> None:
        """Let go of what only the first step reads: the pixels may be large."""
        from transformers.generation.utils import MULTIMODAL_INPUTS_TO_DROP_OUTSIDE_PREFILL

        for name in MULTIMODAL_INPUTS_TO_DROP_OUTSIDE_PREFILL:
            self._state.pop(name, None)


def _placed(value: Any, model: Any) -> Any:
    import torch

    if not isinstance(value, torch.Tensor):
        return value
    return value.to(model.device, model.dtype if value.is_floating_point() else None)


def sees_images(model: Any) -> bool:
    """Tell whether `model` is one of images and text; the text part of such a family is not."""
    return "image" in getattr(model, "input_modalities", ()) and takes_images(model.config)


def _parameters(model: Any) -> frozenset[str]:
    return frozenset(inspect.signature(model.forward).parameters)
