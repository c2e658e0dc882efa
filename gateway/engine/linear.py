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

from gateway.engine.compute import Compute, Inline
from gateway.engine.siblings import SHARED_INPUT

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

PIECE_BYTES = 64 * 2**20
"""Of weights that are packed at once: running streams wait so long, some 30 ms."""


class Product(Protocol):
    """One product for one or several linear layers: their outputs side by side."""

    memory_bytes: int

    def __call__(self, tensor: Tensor) -> Tensor: ...


class PackedProduct:
    """Weights in oneDNN's own layout; the layers' own can go."""

    def __init__(self, layers: list[nn.Linear]) -> None:
        weight = joint_weight(layers)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        self._bias = joint_bias(layers)
        self.memory_bytes = weight.nbytes

    def __call__(self, tensor: Tensor) -> Tensor:
        output: Tensor = torch.ops.mkldnn._linear_pointwise(
            tensor, self._weight, self._bias, "none", [], ""
        )
        return output


class PiecedProduct:
    """Products of one large layer's rows, piece by piece: each is packed in a short time."""

    def __init__(self, pieces: list[Product]) -> None:
        self._pieces = pieces
        self.memory_bytes = sum(piece.memory_bytes for piece in pieces)

    def __call__(self, tensor: Tensor) -> Tensor:
        return torch.cat([piece(tensor) for piece in self._pieces], dim=-1)


class JointProduct:
    """Plain weights, one after another in memory; the layers keep theirs as views of it."""

    def __init__(self, layers: list[nn.Linear]) -> None:
        self._weight = joint_weight(layers)
        self.memory_bytes = 0  # the layers count it
        if len(layers) > 1:
            parts = torch.split(self._weight, [layer.out_features for layer in layers])
            for layer, part in zip(layers, parts, strict=True):
                layer.weight = nn.Parameter(part, requires_grad=False)
        self._bias = joint_bias(layers)

    def __call__(self, tensor: Tensor) -> Tensor:
        return nn.functional.linear(tensor, self._weight, self._bias)


class _Shared:
    """Computes a product once for the siblings that ask for its parts, one after another."""

    def __init__(self, product: Product, sizes: list[int]) -> None:
        self.product = product
        self._sizes = sizes
        self._input: Tensor | None = None
        self._parts: list[Tensor] = []

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

    def __init__(self, shared: _Shared, index: int, layer: nn.Linear) -> None:
        super().__init__()
        self._shared = shared
        self._index = index
        self.in_features = layer.in_features
        self.out_features = layer.out_features

    @property
    def product(self) -> Product:
        """What this layer and its siblings compute together."""
        return self._shared.product

    def forward(self, tensor: Tensor) -> Tensor:
        return self._shared.part(self._index, tensor)


def joint_product(layers: list[Any]) -> Product:
    """Return the one product of layers that share an input, packed if they are."""
    first = layers[0]
    if isinstance(first, PackedLinear):
        if any(layer.product is not first.product for layer in layers[1:]):
            raise TypeError("layers that were not packed together")
        return first.product
    if any(type(layer) is not nn.Linear for layer in layers):
        raise TypeError(f"no plain linear layer: {type(first).__name__}")
    return JointProduct(layers)


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
            found, expected = PackedProduct([layer])(tensor), layer(tensor)
            return torch.allclose(found.float(), expected.float(), rtol=5e-2, atol=5e-2)
    except (AttributeError, RuntimeError) as error:
        logger.info("linear layers stay as they are: %s", error)
        return False


def pack_linears(
    model: Any,
    make: Callable[[list[nn.Linear]], Product] = PackedProduct,
    compute: Compute | None = None,
    on_packed: Callable[[int], None] = lambda size_bytes: None,
) -> int:
    """Replace every Linear of `model` by its product; return the bytes of the products' weights.

    The plain weights are freed one after the other, but for one that something else uses (a tied
    embedding); `on_packed` is told how many bytes there were of them. Each product is made in
    `compute` (None: here).
    """
    compute = compute or Inline()
    packed_bytes = 0
    # The layers themselves are not held here: each is gone once its product is there.
    for parent in [module for module in model.modules() if type(module) is not nn.Linear]:
        children = {
            name: child for name, child in parent.named_children() if type(child) is nn.Linear
        }
        for names in _groups(children):
            layers = [children.pop(name) for name in names]
            plain_bytes = sum(layer.weight.nbytes for layer in layers)
            product = _make_product(layers, make, compute)
            shared = _Shared(product, [layer.out_features for layer in layers])
            for index, name in enumerate(names):
                setattr(parent, name, PackedLinear(shared, index, layers[index]))
            layers.clear()
            packed_bytes += product.memory_bytes
            on_packed(plain_bytes)
    _leave_files(model)
    return packed_bytes


def _make_product(
    layers: list[nn.Linear], make: Callable[[list[nn.Linear]], Product], compute: Compute
) -> Product:
    """Make the layers' product in `compute`, which others want as well: a large one in pieces, but
    for what decides by the layer that it is given."""
    if make is not PackedProduct or len(layers) > 1 or layers[0].weight.nbytes <= PIECE_BYTES:
        return compute.run(partial(make, layers))
    return PiecedProduct([compute.run(partial(make, [piece])) for piece in _pieces(layers[0])])


def _pieces(layer: nn.Linear) -> list[nn.Linear]:
    """Return layers of some of the rows each, which are views of the layer's own."""
    rows = max(1, PIECE_BYTES // layer.weight[0].nbytes)
    weights = torch.split(layer.weight.detach(), rows)
    biases = torch.split(layer.bias.detach(), rows) if layer.bias is not None else None
    pieces = []
    for index, weight in enumerate(weights):
        piece = nn.Linear(layer.in_features, len(weight), bias=biases is not None, device="meta")
        piece.weight = nn.Parameter(weight, requires_grad=False)
        if biases is not None:
            piece.bias = nn.Parameter(biases[index], requires_grad=False)
        pieces.append(piece)
    return pieces


def _leave_files(model: Any) -> None:
    """Copy what is left of the weights, so that the mapped files, of which it is but a part, need
    not stay in memory for it."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()


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
