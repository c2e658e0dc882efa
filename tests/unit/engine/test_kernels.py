"""Whether attention over unlike lengths is chosen, and what is asked of the kernel for it."""

from typing import Any

import pytest
import torch

from gateway.engine.decoding.attention import attend
from gateway.engine.decoding.kernels import find_kernel, is_right, may_serve
from gateway.engine.decoding.varlen import fits
from gateway.engine.decoding.view import Run, View
from tests.varlen_reference import varlen_attn

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_flash_attention_is_for_half_precision_on_an_ampere_gpu(dtype: torch.dtype) -> None:
    assert may_serve("cuda", 8, dtype)
    assert may_serve("cuda", 9, dtype)
    assert not may_serve("cuda", 7, dtype)
    assert not may_serve("cpu", 0, dtype)
    assert not may_serve("mps", 0, dtype)
    assert not may_serve("cuda", 9, torch.float32)


def test_a_layer_fits_by_its_heads() -> None:
    assert fits(64, 64, None)
    assert fits(256, 256, None)
    assert not fits(288, 288, None)
    assert not fits(20, 20, None)
    assert not fits(192, 128, None)
    assert not fits(64, 64, softcap=50.0)


def test_there_is_no_kernel_for_the_cpu() -> None:
    assert find_kernel(CPU, torch.bfloat16) is None


def test_torch_s_own_kernel_takes_what_it_is_asked() -> None:
    """Tensors without data: its arguments and shapes are checked, nothing is computed."""
    from torch.nn.attention.varlen import varlen_attn as installed

    meta = torch.device("meta")
    query = torch.empty(11, 4, 64, dtype=torch.bfloat16, device=meta)
    keys, values = torch.empty(2, 5, 16, 2, 64, dtype=torch.bfloat16, device=meta).transpose(2, 3)
    view = View([(0, 6), (2, 11)], [Run(1, 0, 2, 5), Run(4, 3, 7, 4)], meta, installed)
    found = attend(query, keys, values, view, window=4)
    assert (found.shape, found.dtype) == (query.shape, query.dtype)


@pytest.mark.parametrize("seed", range(5))
def test_what_is_asked_of_a_kernel_comes_to_what_padded_rows_say(seed: int) -> None:
    torch.manual_seed(seed)
    assert is_right(varlen_attn, CPU, torch.float32)


def unaligned(*tensors: Any, window_size: Any, **options: Any) -> Any:
    """A kernel that does not know of windows."""
    left_out = (-1, window_size[1])
    return varlen_attn(*tensors, window_size=left_out, **options)


def unused(*tensors: Any, seqused_k: Any, **options: Any) -> Any:
    """A kernel that sees one token less of each sequence."""
    shorter = (seqused_k - 1).clamp(min=torch.diff(tensors[3]))
    return varlen_attn(*tensors, seqused_k=shorter, **options)


@pytest.mark.parametrize("kernel", [unaligned, unused])
def test_a_kernel_that_is_wrong_is_found_out(kernel: Any) -> None:
    torch.manual_seed(0)
    assert not is_right(kernel, CPU, torch.float32)
