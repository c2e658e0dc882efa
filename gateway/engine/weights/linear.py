"""Products of linear layers: packed as oneDNN computes fastest, those that share an input as one.

Decoding is bound by reading weights: the packed layout reads them faster than a plain matrix
product does, and one product for query, key and value (or for gate and up) starts a third as
often. The packing operators are torch's own but private, so they are probed before they are used.
Figures: bench/README.md.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from gateway.engine.files.siblings import SHARED_INPUT
from gateway.engine.weights.compute import Compute, Inline
from gateway.engine.weights.gemv import BoundGemv, Gemv

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)


class Product(Protocol):
    """One product for one or several linear layers: their outputs side by side."""

    memory_bytes: int

    def __call__(self, tensor: Tensor) -> Tensor: ...


class PackedProduct:
    """Weights in oneDNN's own layout; the layers' own can go."""

    def __init__(self, layers: list[nn.Linear], gemv: Gemv | None = None) -> None:
        """`gemv` computes products of few tokens, if it can (None: oneDNN computes all)."""
        weight = joint_weight(layers)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        self._bias = joint_bias(layers)
        self.memory_bytes = weight.nbytes
        self.few = _bind(gemv, self._weight, weight, self._bias) if gemv else None

    def __call__(self, tensor: Tensor) -> Tensor:
        if self.few is not None and self.few.takes(tensor):
            return self.few(tensor)
        output: Tensor = torch.ops.mkldnn._linear_pointwise(
            tensor, self._weight, self._bias, "none", [], ""
        )
        return output


class PlainProduct:
    """The layers as they are, computed one by one: it copies nothing, so it is there at once."""

    def __init__(self, layers: list[nn.Linear]) -> None:
        self.layers = layers
        self.memory_bytes = sum(layer.weight.nbytes for layer in layers)

    def __call__(self, tensor: Tensor) -> Tensor:
        outputs = [layer(tensor) for layer in self.layers]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)


class JointProduct:
    """Plain weights, one after another in memory; the layers keep theirs as views of it."""

    def __init__(self, layers: list[nn.Linear]) -> None:
        self._weight = joint_weight(layers)
        if len(layers) > 1:
            parts = torch.split(self._weight, [layer.out_features for layer in layers])
            for layer, part in zip(layers, parts, strict=True):
                layer.weight = nn.Parameter(part, requires_grad=False)
        self._bias = joint_bias(layers)

    def __call__(self, tensor: Tensor) -> Tensor:
        return nn.functional.linear(tensor, self._weight, self._bias)


class SharedProduct:
    """The product of siblings, which another thread may set to another one between two calls.

    A sibling that is asked for its part computes it for all, as they are asked one after another.
    """

    def __init__(self, layers: list[nn.Linear]) -> None:
        self.product: Product = PlainProduct(layers)
        self._sizes = [layer.out_features for layer in layers]
        self._input: Tensor | None = None
        self._parts: list[Tensor] = []

    def __call__(self, tensor: Tensor) -> Tensor:
        return self.product(tensor)

    def part(self, index: int, tensor: Tensor) -> Tensor:
        if len(self._sizes) == 1:
            return self.product(tensor)
        if self._input is not tensor:
            self._input = tensor
            self._parts = list(torch.split(self.product(tensor), self._sizes, dim=-1))
        part = self._parts[index]
        if index == len(self._sizes) - 1:
            # The last of the siblings: let the memory go.
            self._input, self._parts = None, []
        return part


class PackedLinear(nn.Module):
    """Stands in for a Linear; the weights live in its product."""

    def __init__(self, shared: SharedProduct, index: int, layer: nn.Linear) -> None:
        super().__init__()
        self.shared = shared
        self._index = index
        self.in_features = layer.in_features
        self.out_features = layer.out_features

    @property
    def product(self) -> Product:
        """What this layer and its siblings compute together."""
        return self.shared.product

    def forward(self, tensor: Tensor) -> Tensor:
        return self.shared.part(self._index, tensor)


def joint_product(layers: list[Any]) -> Callable[[Tensor], Tensor]:
    """Return the one product of layers that share an input: what stands in for them, if anything
    does."""
    first = layers[0]
    if isinstance(first, PackedLinear):
        if any(layer.shared is not first.shared for layer in layers[1:]):
            raise TypeError("layers that were not packed together")
        return first.shared
    if any(type(layer) is not nn.Linear for layer in layers):
        raise TypeError(f"no plain linear layer: {type(first).__name__}")
    return JointProduct(layers)


def packs_bfloat16() -> bool:
    """Tell whether oneDNN has products of packed bfloat16 for this machine."""
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):  # a build of torch without it
        return False


def can_pack(model: Any) -> bool:
    """Tell whether this machine has the operators for this model's dtype; computes a little."""
    if model.device.type != "cpu" or model.dtype is not torch.bfloat16 or not packs_bfloat16():
        return False
    try:
        with torch.inference_mode():
            layer = nn.Linear(32, 48, bias=False, dtype=torch.bfloat16)
            tensor = torch.randn(2, 1, 32, dtype=torch.bfloat16)
            found, expected = PackedProduct([layer])(tensor), layer(tensor)
            return torch.allclose(found.float(), expected.float(), rtol=5e-2, atol=5e-2)
    except (AttributeError, RuntimeError) as error:
        logger.info("linear layers stay as they are: %s", error)
        return False


def stand_in(model: Any) -> list[SharedProduct]:
    """Replace every Linear of `model`, siblings together; return what computes in their place.

    Nothing is copied: it is the layers that compute, until a product is set to another one. Their
    weights are no longer among the model's parameters.
    """
    found = []
    for parent in [module for module in model.modules() if type(module) is not nn.Linear]:
        children = {
            name: child for name, child in parent.named_children() if type(child) is nn.Linear
        }
        for names in _groups(children):
            layers = [children[name] for name in names]
            shared = SharedProduct(layers)
            for index, name in enumerate(names):
                setattr(parent, name, PackedLinear(shared, index, layers[index]))
            found.append(shared)
    return found


def replace_linears(
    model: Any,
    make: Callable[[list[nn.Linear]], Product],
    compute: Compute | None = None,
    on_made: Callable[[int], None] = lambda size_bytes: None,
) -> int:
    """Replace every Linear of `model` by what `make` makes of it; return the bytes of that.

    The plain weights are freed one after the other, but for one that something else uses (a tied
    embedding); `on_made` is told how many bytes there were of them. Each product is made in
    `compute` (None: here), which others want as well.
    """
    compute = compute or Inline()
    made_bytes = 0
    for shared in stand_in(model):
        plain = shared.product
        assert isinstance(plain, PlainProduct), "it was made above"
        shared.product = compute.run(partial(make, plain.layers))
        made_bytes += shared.product.memory_bytes
        plain_bytes = plain.memory_bytes
        del plain  # its weights are free when the files are told of
        on_made(plain_bytes)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu":
            # What is left is but a part of the mapped files, which need not stay for it.
            tensor.data = tensor.data.clone()
    return made_bytes


def _bind(gemv: Gemv, packed: Tensor, weight: Tensor, bias: Tensor | None) -> BoundGemv | None:
    try:
        return BoundGemv(gemv, packed, weight, bias)
    except ValueError as error:
        logger.info("left to oneDNN: %s", error)
        return None


def joint_weight(layers: list[nn.Linear]) -> Tensor:
    """Return the weights of layers that share an input, one after another."""
    weights = [layer.weight.detach() for layer in layers]
    return weights[0] if len(weights) == 1 else torch.cat(weights)


def joint_bias(layers: list[nn.Linear]) -> Tensor | None:
    biases = [layer.bias for layer in layers]
    return None if None in biases else torch.cat([bias.detach() for bias in biases])


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
