"""Packs the weights of a model that already answers, one product after the other.

A model answers as soon as its files are mapped. Its linear layers are then set to packed products
one by one, while it runs: a step computes with whatever is there. See ADR 20.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gateway.engine.files.mapped import MappedWeights, Span, let_go_of
from gateway.engine.weights.gemv import Gemv
from gateway.engine.weights.linear import (
    PackedProduct,
    PlainProduct,
    Product,
    SharedProduct,
    stand_in,
)
from gateway.engine.weights.runtime import trim_memory

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

SMALL_BYTES = 2**20
"""Tensors below this are copied at once."""
SLAB_BYTES = 16 * 2**20
"""How much of a large one is in memory twice while it is copied."""


class Packing:
    """What is left to be packed of a model. `step` is called in one thread, and may be while
    others compute with the model.

    `memory_bytes` is what the linear layers take, packed or not: plain ones are pages of the mapped
    files, which are let go as their packed copies come.
    """

    def __init__(self, model: Any, files: MappedWeights, gemv: Gemv | None = None) -> None:
        """Put stand-ins in the place of the linear layers, which compute as these did until they
        are packed. What keeps tensors of the model must come later. `gemv` is for products of few
        tokens, see `PackedProduct`."""
        self._model = model
        self._files = files
        self.gemv = gemv
        self._spans: list[Span] | None = None
        products = stand_in(model)
        self.memory_bytes = sum(_plain(product).memory_bytes for product in products)
        # The output layer, by far the largest, comes last: an unload waits for the one under way.
        self._left = deque(sorted(products, key=lambda product: _plain(product).memory_bytes))
        self._done_bytes = 0
        _leave_small(model)

    @property
    def is_done(self) -> bool:
        return not self._left

    @property
    def fraction(self) -> float:
        """How much is packed, 0 to 1."""
        return self._done_bytes / self.memory_bytes if self.memory_bytes else 1.0

    @property
    def working_bytes(self) -> int:
        """What the next step takes for its time beside what is counted."""
        if self.is_done:
            return 0
        plain = _plain(self._left[0])
        # Packed and plain, and once more where they are joined before.
        return plain.memory_bytes * min(2, len(plain.layers))

    def step(self) -> None:
        """Pack the next product; after the last the files are no longer needed."""
        if self._spans is None:
            # Once: nobody writes to weights after a load.
            self._spans = self._files.spans()
        shared = self._left[0]
        self._pack(shared)
        self._left.popleft()
        if self.is_done:
            _leave_files(self._model, self._spans)
            trim_memory()

    def _pack(self, shared: SharedProduct) -> None:
        plain = _plain(shared)
        packed = PackedProduct(plain.layers, self.gemv)
        if _are_alike(packed, plain):
            shared.product = packed
        else:
            logger.warning("a packed product differs from the plain one, which stays")
        self._done_bytes += plain.memory_bytes
        for layer in plain.layers:
            let_go_of(_span(layer.weight), self._spans or ())


def _plain(shared: SharedProduct) -> PlainProduct:
    product = shared.product
    assert isinstance(product, PlainProduct), "it is not packed yet"
    return product


@torch.inference_mode()
def _are_alike(packed: Product, plain: PlainProduct) -> bool:
    """Tell whether both say the same of one token, but for rounding."""
    layer = plain.layers[0]
    source = torch.Generator().manual_seed(0)
    token = torch.randn(1, layer.in_features, generator=source).to(layer.weight.dtype)
    found, expected = packed(token).float(), plain(token).float()
    return torch.allclose(found, expected, rtol=5e-2, atol=5e-2 * float(expected.abs().max()))


def _leave_small(model: Any) -> None:
    """Copy what is small and not packed, so that the mapped files need not stay for it."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.nbytes <= SMALL_BYTES:
            tensor.data = tensor.data.clone()


def _leave_files(model: Any, spans: list[Span]) -> None:
    """Copy the large tensors that are still in the files, of which they are but a part.

    The old ones are left as they are: a step that runs may be reading them.
    """
    copies: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, tensor in module.named_parameters(recurse=False):
            if any(_lies_in(_span(tensor), span) for span in spans):
                if id(tensor) not in copies:
                    copies[id(tensor)] = nn.Parameter(_copy(tensor, spans), requires_grad=False)
                setattr(module, name, copies[id(tensor)])


def _copy(tensor: Tensor, spans: list[Span]) -> Tensor:
    copy = torch.empty_like(tensor)
    step = max(1, SLAB_BYTES // max(1, tensor[0].nbytes))
    for start in range(0, len(tensor), step):
        slab = tensor.detach()[start : start + step]
        copy[start : start + step] = slab
        let_go_of(_span(slab), spans)
    return copy


def _span(tensor: Tensor) -> Span:
    return Span(tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes)


def _lies_in(span: Span, mapped: Span) -> bool:
    return mapped.start <= span.start and span.end <= mapped.end
