"""Weights of linear layers in 8 or 4 bits, computed with by torch's own operators for the CPU.

8 bits: one scale for each output. 4 bits: a scale and a zero for each group of inputs. The rest of
the model keeps its precision, and so does what flows through it. The operators are private, so they
are probed before they are used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gateway.core.errors import ModelLoadFailed
from gateway.core.loading import Quantization
from gateway.engine.weights.compute import Compute
from gateway.engine.weights.linear import Product, joint_bias, joint_weight, replace_linears

if TYPE_CHECKING:
    from torch import Tensor

GROUP = 32
"""Inputs that share a scale in 4 bits."""
_ROWS = 16
"""The 4 bit operator takes outputs in multiples of so many."""
_SLAB = 2**20
"""Numbers that are quantized at once."""


class Int8Product:
    """Rows of 8 bits, each with its scale; zero stays zero."""

    def __init__(self, layers: list[nn.Linear]) -> None:
        weight = joint_weight(layers)
        self._weight = torch.empty_like(weight, dtype=torch.int8)
        self._scales = weight.new_empty(len(weight))
        for rows in _slabs(weight):
            part = weight[rows].float()
            scales = (part.abs().amax(1) / 127).clamp(min=1e-12)
            self._weight[rows] = (part / scales[:, None]).round().clamp(-127, 127).to(torch.int8)
            self._scales[rows] = scales
        self._bias = joint_bias(layers)
        self.memory_bytes = self._weight.nbytes + self._scales.nbytes

    def __call__(self, tensor: Tensor) -> Tensor:
        rows = tensor.reshape(-1, tensor.shape[-1])
        output = torch._weight_int8pack_mm(rows, self._weight, self._scales)
        return _finish(output, tensor, self._bias)


class Int4Product:
    """Groups of 4 bits, each with its scale and what its middle stands for."""

    def __init__(self, layers: list[nn.Linear]) -> None:
        weight = joint_weight(layers)
        numbers = torch.empty_like(weight, dtype=torch.int32)
        pairs = weight.new_empty(len(weight), weight.shape[1] // GROUP, 2)
        for rows in _slabs(weight):
            grouped = weight[rows].float().view(-1, weight.shape[1] // GROUP, GROUP)
            low, high = grouped.amin(-1, keepdim=True), grouped.amax(-1, keepdim=True)
            scales = ((high - low) / 15).clamp(min=1e-12)
            numbers[rows] = ((grouped - low) / scales).round().clamp(0, 15).int().flatten(1)
            # The operator reads 0 to 15 as -8 to 7 around the middle.
            pairs[rows] = torch.cat([scales, low + 8 * scales], -1).to(weight.dtype)
        self._pairs = pairs.transpose(0, 1).contiguous()
        self._weight = torch._convert_weight_to_int4pack_for_cpu(numbers, 1)
        self._bias = joint_bias(layers)
        self.memory_bytes = self._weight.nbytes + self._pairs.nbytes

    def __call__(self, tensor: Tensor) -> Tensor:
        rows = tensor.reshape(-1, tensor.shape[-1])
        output = torch._weight_int4pack_mm_for_cpu(rows, self._weight, GROUP, self._pairs)
        return _finish(output, tensor, self._bias)


def quantize(
    name: str,
    model: Any,
    quantization: Quantization,
    compute: Compute | None = None,
    on_made: Callable[[int], None] = lambda size_bytes: None,
) -> int:
    """Replace every Linear of `model`; return the bytes of the new weights. See `replace_linears`.

    The output layer keeps 8 bits where the others get 4, as does a layer whose sizes the 4 bit
    operator does not take. Raises ModelLoadFailed where the model is not on a CPU that can.
    """
    if model.device.type != "cpu" or not _works(model.dtype):
        raise ModelLoadFailed(
            f"{name} cannot be loaded as {quantization} on {model.device.type}.",
            hint="8 and 4 bit weights are for the CPU; GGUF files are quantized as they are.",
        )
    head = model.get_output_embeddings()
    return replace_linears(model, _maker(quantization, head), compute, on_made)


def _maker(quantization: Quantization, head: Any) -> Callable[[list[nn.Linear]], Product]:
    def make(layers: list[nn.Linear]) -> Product:
        outputs = sum(layer.out_features for layer in layers)
        fits = layers[0].in_features % GROUP == 0 and outputs % _ROWS == 0
        if quantization == "int4" and fits and layers[0] is not head:
            return Int4Product(layers)
        return Int8Product(layers)

    return make


def _slabs(weight: Tensor) -> Iterator[slice]:
    """Yield the rows in parts: in between their numbers take several times as much as before."""
    step = max(1, _SLAB // weight.shape[1])
    for start in range(0, len(weight), step):
        yield slice(start, start + step)


def _works(dtype: torch.dtype) -> bool:
    """Tell whether this build of torch has both operators and they are right: computes a little."""
    layer = nn.Linear(2 * GROUP, 2 * _ROWS, bias=False, dtype=dtype)
    tensor = torch.randn(3, 2 * GROUP, dtype=dtype)
    try:
        with torch.inference_mode():
            expected = layer(tensor).float()
            errors = [
                (product([layer])(tensor).float() - expected).abs().mean() / expected.abs().mean()
                for product in (Int8Product, Int4Product)
            ]
    except (AttributeError, RuntimeError):
        return False
    return bool(errors[0] < 0.05 and errors[1] < 0.3)


def _finish(output: Tensor, tensor: Tensor, bias: Tensor | None) -> Tensor:
    output = output.reshape(*tensor.shape[:-1], -1)
    return output if bias is None else output + bias
