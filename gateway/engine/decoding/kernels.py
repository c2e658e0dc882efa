"""Finds out whether torch's attention for sequences of unlike lengths serves a model, by trying."""

from __future__ import annotations

import logging

import torch

from gateway.engine.decoding.attention import attend
from gateway.engine.decoding.varlen import Kernel
from gateway.engine.decoding.view import Run, View

logger = logging.getLogger(__name__)

FIRST_CAPABILITY = 8
"""FlashAttention needs an Ampere GPU or a later one."""


def may_serve(device_type: str, capability: int, dtype: torch.dtype) -> bool:
    """Tell whether FlashAttention is made for a device (the major number of what CUDA calls its
    compute capability) and a dtype."""
    is_half = dtype in (torch.bfloat16, torch.float16)
    return device_type == "cuda" and capability >= FIRST_CAPABILITY and is_half


def find_kernel(device: torch.device, dtype: torch.dtype) -> Kernel | None:
    """Return torch's kernel where it serves this device and dtype; computes a little.

    None stands for attention over padded rows.
    """
    is_cuda = device.type == "cuda"
    capability = torch.cuda.get_device_capability(device)[0] if is_cuda else 0
    if not may_serve(device.type, capability, dtype):
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn

        if is_right(varlen_attn, device, dtype):
            return varlen_attn
        reason = "its output differs"
    except Exception as error:  # a build of torch without it, another signature
        reason = f"{type(error).__name__}: {error}"
    logger.warning("attention on %s goes without varlen_attn: %s", device, reason)
    return None


@torch.inference_mode()
def is_right(kernel: Kernel, device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether `kernel` says what padded rows do, of two that decode and two chunks, one of
    them in the middle of its sequence, with and without a window."""
    singles, chunks = [(0, 6), (2, 11)], [Run(1, 0, 2, 5), Run(4, 3, 7, 4)]
    query = torch.randn(11, 4, 64, dtype=dtype, device=device)
    keys, values = torch.randn(2, 5, 16, 2, 64, dtype=dtype, device=device).transpose(2, 3)
    for window in (None, 4):
        found, expected = (
            attend(query, keys, values, View(singles, chunks, device, own), window)
            for own in (kernel, None)
        )
        if not torch.allclose(found.float(), expected.float(), rtol=5e-2, atol=5e-2):
            return False
    return True
