"""Linear layers in the layout that oneDNN computes fastest, and those that share an input as one.

Decoding is bound by reading weights: the packed layout reads them faster than a plain matrix
product does, and one product for query, key and value (or for gate and up) starts a third as
often. The operators are torch's own but private, so they are probed before they are used.
Figures: bench/README.md.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

SHARED_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Siblings that transformers' models feed with one and the same tensor, one right after another."""


class _Product:
    """One packed product for one or several linear layers; remembers it for the siblings."""

    def __init__(self, layers: list[nn.Linear]) -> None:
        weight = torch.cat([layer.weight.detach() for layer in layers])
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        biases = [layer.bias for layer in layers]
        self._bias = None if None in biases else torch.cat([bias.detach() for bias in biases])
        self._input: Tensor | None = None
        self._parts: list[Tensor] = []
        self._sizes = [layer.out_features for layer in layers]

    def part(self, index: int, tensor: Tensor) -> Tensor:
        if self._input is not tensor:
            output: Tensor = torch.ops.mkldnn._linear_pointwise(
                tensor, self._weight, self._bias, "none", [], ""
            )
            if len(self._sizes) == 1:
                return output
            self._input, self._parts = tensor, list(torch.split(output, self._sizes, dim=-1))
        part = self._parts[index]
        if index == len(self._sizes) - 1:
            # The last of the siblings: let the memory go.
            self._input, self._parts = None, []
        return part


class PackedLinear(nn.Module):
    """Stands in for a Linear; the weights live in its product."""

    def __init__(self, product: _Product, index: int, layer: nn.Linear) -> None:
        super().__init__()
        self._product = product
        self._index = index
        self.in_features = layer.in_features
        self.out_features = layer.out_features

    def forward(self, tensor: Tensor) -> Tensor:
        return self._product.part(self._index, tensor)


def can_pack(model: Any) -> bool:
    """Tell whether this machine has the operators for this model's dtype; computes a little."""
    if model.device.type != "cpu" or model.dtype is not torch.bfloat16:
        return False
    try:
        if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        with torch.inference_mode():
            layer = nn.Linear(32, 48, bias=False, dtype=torch.bfloat16)
            tensor = torch.randn(2, 1, 32, dtype=torch.bfloat16)
            found, expected = _Product([layer]).part(0, tensor), layer(tensor)
            return torch.allclose(found.float(), expected.float(), rtol=5e-2, atol=5e-2)
    except (AttributeError, RuntimeError) as error:
        logger.info("linear layers stay as they are: %s", error)
        return False


def pack_linears(model: Any) -> int:
    """Replace every Linear of `model` by its packed form; return the bytes of the packed weights.

    The plain weights are freed, but for one that something else uses (a tied embedding).
    """
    packed_bytes = 0
    for parent in list(model.modules()):
        children = {
            name: child for name, child in parent.named_children() if type(child) is nn.Linear
        }
        for names in _groups(children):
            layers = [children[name] for name in names]
            product = _Product(layers)
            for index, name in enumerate(names):
                setattr(parent, name, PackedLinear(product, index, layers[index]))
            packed_bytes += sum(layer.weight.nbytes for layer in layers)
    return packed_bytes


def _groups(children: dict[str, nn.Linear]) -> list[tuple[str, ...]]:
    groups: list[tuple[str, ...]] = []
    left = dict(children)
    for siblings in SHARED_INPUT:
        if all(name in left for name in siblings) and _alike([left[name] for name in siblings]):
            groups.append(siblings)
            for name in siblings:
                del left[name]
    return groups + [(name,) for name in left]


def _alike(layers: list[nn.Linear]) -> bool:
    return len({(layer.in_features, layer.bias is None) for layer in layers}) == 1
