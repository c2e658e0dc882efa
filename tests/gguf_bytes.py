"""Writes the bytes of GGUF files by hand, so that they can be wrong in every way."""

import struct
from collections.abc import Mapping, Sequence
from typing import Any

ALIGNMENT = 32

LLAMA: Mapping[str, Any] = {
    "general.architecture": "llama",
    "general.file_type": 15,
    "llama.context_length": 8192,
    "tokenizer.ggml.tokens": ["a", "bc", ""],
    "tokenizer.ggml.scores": [0.5, 1.5, 2.5],
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.chat_template": "{{ messages }}",
}
TENSORS: Sequence[tuple[str, Sequence[int], int]] = (
    ("token_embd.weight", (32, 3), 0),
    ("blk.0.attn_q.weight", (32, 32), 8),
)


def write_gguf(
    metadata: Mapping[str, Any] = LLAMA,
    tensors: Sequence[tuple[str, Sequence[int], int]] = TENSORS,
    *,
    version: int = 3,
) -> bytes:
    """Return a file with zeros for weights. A tensor is its name, its shape and its type."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    head += b"".join(_text(key) + _value(value) for key, value in metadata.items())
    offset = 0
    for name, shape, kind in tensors:
        head += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
        offset += _padded(_bytes(shape, kind))
    # Without tensors there is nothing to align, and nothing is written.
    return head.ljust(_padded(len(head)) if tensors else 0, b"\0") + b"\0" * offset


def _value(value: Any) -> bytes:
    if isinstance(value, list):
        kind = _kind(value[0])
        return struct.pack("<IIQ", 9, kind, len(value)) + b"".join(_plain(item) for item in value)
    return struct.pack("<I", _kind(value)) + _plain(value)


def _kind(value: Any) -> int:
    return {bool: 7, int: 4, float: 6, str: 8}[type(value)]


def _plain(value: Any) -> bytes:
    if isinstance(value, str):
        return _text(value)
    return struct.pack({bool: "<?", int: "<I", float: "<f"}[type(value)], value)


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _bytes(shape: Sequence[int], kind: int) -> int:
    elements = 1
    for size in shape:
        elements *= size
    return {0: elements * 4, 8: elements // 32 * 34}[kind]


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
