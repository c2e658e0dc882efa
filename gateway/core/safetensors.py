"""Reads the header of a safetensors file: which tensors lie where. Pure: is given a stream.

Trusts nothing: the header is bounded, and the tensors must fill the file without a gap or an
overlap. Source: the format's description in safetensors' README, and its Rust reader.
"""

import json
from collections.abc import Sequence
from typing import Any, BinaryIO

import msgspec

MAX_HEADER_BYTES = 100_000_000
"""The most that safetensors itself reads."""
# Bits of one number of each dtype. Source: safetensors/src/tensor.rs, Dtype::bitsize.
# fmt: off
DTYPE_BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}
# fmt: on


class BrokenSafetensors(ValueError):
    """The file is none, or is damaged; the message is a clause that completes `the file ...`."""


class _Tensor(msgspec.Struct, forbid_unknown_fields=True):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def read_tensors(stream: BinaryIO, size_bytes: int) -> frozenset[str]:
    """Return the names of the tensors in `stream`, which has `size_bytes`.

    Raises BrokenSafetensors when anything is not as it must be.
    """
    head = stream.read(8)
    if len(head) < 8:
        raise BrokenSafetensors("is too short to be safetensors")
    length = int.from_bytes(head, "little")
    if length > min(MAX_HEADER_BYTES, size_bytes - 8):
        raise BrokenSafetensors("is cut off or damaged: its header does not fit into it")
    header = stream.read(length)
    if len(header) < length:
        raise BrokenSafetensors("is cut off: its header ends too soon")
    tensors = _read_table(header)
    _require_layout(list(tensors.values()), size_bytes - 8 - length)
    return frozenset(tensors)


def _read_table(header: bytes) -> dict[str, _Tensor]:
    if not header.startswith(b"{"):
        raise BrokenSafetensors("has a header that is no table")
    try:
        table = json.loads(header, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        raise BrokenSafetensors("has a header that is not valid JSON") from None
    try:
        msgspec.convert(table.pop("__metadata__", None), dict[str, str] | None)
        return msgspec.convert(table, dict[str, _Tensor])
    except msgspec.ValidationError as error:
        raise BrokenSafetensors(f"has a header that describes no tensors: {error}") from None


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name that is there twice")
    return found


def _require_layout(tensors: Sequence[_Tensor], data_bytes: int) -> None:
    """Raise BrokenSafetensors unless the tensors follow each other and fill the data exactly."""
    position = 0
    for tensor in sorted(tensors, key=lambda each: each.data_offsets):
        begin, end = tensor.data_offsets
        if begin != position or end < begin:
            raise BrokenSafetensors("has tensors that do not follow each other")
        if end - begin != _tensor_bytes(tensor):
            raise BrokenSafetensors("has a tensor whose size is not that of its shape")
        position = end
    if position > data_bytes:
        missing = position - data_bytes
        raise BrokenSafetensors(f"is cut off: {missing} bytes of its tensors are missing")
    if position < data_bytes:
        raise BrokenSafetensors(f"has {data_bytes - position} bytes that belong to no tensor")


def _tensor_bytes(tensor: _Tensor) -> int:
    if tensor.dtype not in DTYPE_BITS:
        raise BrokenSafetensors(f"has a tensor of the unknown type {tensor.dtype!r}")
    bits = DTYPE_BITS[tensor.dtype]
    for dimension in tensor.shape:
        if dimension < 0:
            raise BrokenSafetensors("has a tensor of an impossible shape")
        bits *= dimension
    if bits % 8:
        raise BrokenSafetensors("has a tensor that does not end with a whole byte")
    return bits // 8
