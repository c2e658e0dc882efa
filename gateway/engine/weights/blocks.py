"""The layout of weights that oneDNN packed: which of those that are known it is.

oneDNN keeps blocks of outputs, each padded with zeros to a multiple of 32 inputs. In a block the
pairs of weights for two neighbouring inputs lie side by side, one for each output. Processors with
AMX have blocks of another size, and there weights of very few inputs may have yet another. None of
it is a promise of oneDNN's, so it is looked at.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

BLOCKS = (64, 32)
"""Outputs of a block that compiled code can be written for: 32 were found with AMX."""
PAD = 32
"""Inputs are padded to a multiple of this."""


@torch.inference_mode()
def find_block() -> int:
    """Return how many outputs are a block on this machine; packs a small weight.

    Raises RuntimeError if it is none of `BLOCKS`.
    """
    # As wide as those of models: with a lot of threads, blocks of narrow weights are others.
    weight = torch.randn(128, 512, generator=torch.Generator().manual_seed(0)).bfloat16()
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    for block in BLOCKS:
        if lies_in(block, packed, weight):
            return block
    raise RuntimeError("oneDNN packs weights in a layout that is not known")


def lies_in(block: int, packed: Tensor, weight: Tensor) -> bool:
    """Tell by its size and by its beginning whether what oneDNN packed of `weight` [outputs,
    inputs] lies in blocks of so many outputs."""
    outputs, inputs = weight.shape
    size = -(-outputs // block) * block * -(-inputs // PAD) * PAD
    if torch.ops.mkldnn._nbytes(packed) != size * weight.element_size():
        return False
    first = weight[:block, :PAD]
    padded = first.new_zeros(block, PAD)
    padded[: first.shape[0], : first.shape[1]] = first
    expected = padded.view(block, -1, 2).transpose(0, 1).reshape(-1)
    begin = (ctypes.c_char * expected.nbytes).from_address(torch.ops.mkldnn.data_ptr(packed))
    # As bits: what is no number is not equal to itself.
    found = torch.frombuffer(begin, dtype=torch.int16)
    return torch.equal(found, expected.view(torch.int16))
