"""What the context of a GGUF model will take, told from the header of its file."""

from __future__ import annotations

from pathlib import Path

from gateway.core.gguf import BrokenGguf, GgufHeader, read_header

_UBATCH = 512
"""Tokens that llama.cpp computes at once. Source: llama_context_default_params."""


def context_bytes(file: Path, length: int, sequences: int) -> int:
    """Return what llama.cpp sets aside for so many sequences of at most `length` tokens each: keys
    and values, and what a step computes with. 0 where the header does not tell. Blocking.

    Compared with what llama.cpp 0.3.36's Python package said of contexts of 512 to 8,192 tokens and
    1 to 8 sequences (SmolLM2-135M's shape): 0 to 9 MiB more than that.
    """
    try:
        with file.open("rb") as stream:
            header = read_header(stream, file.stat().st_size)
    except (OSError, BrokenGguf):
        return 0
    return _context_bytes(header, length, sequences)


def _context_bytes(header: GgufHeader, length: int, sequences: int) -> int:
    def known(name: str) -> int:
        return max(0, header.number(name) or 0)

    heads, hidden = known("attention.head_count"), known("embedding_length")
    if not heads or not hidden:
        return 0
    trained = known("context_length") or length
    length = min(length or trained, trained)
    size = hidden // heads
    widths = (known("attention.key_length") or size) + (known("attention.value_length") or size)
    shared = known("attention.head_count_kv") or heads
    is_exact = header.quantization == "F32"  # see llama_cpp.loader: then nothing is rounded
    kept = length * sequences * known("block_count") * shared * widths * (4 if is_exact else 2)
    inner = known("feed_forward_length") or 4 * hidden
    flowing = _UBATCH * 4 * (2 * inner + 8 * hidden)
    # A mask in half precision, and scores where attention is not fused.
    looking = _UBATCH * length * (4 * (heads + 1) if is_exact else 2)
    return kept + flowing + looking + sequences * 4 * known("vocab_size")
