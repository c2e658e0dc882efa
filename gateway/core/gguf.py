"""Reads the header of a GGUF file: metadata and where its tensors lie. Pure: is given a stream.

Trusts nothing: every length is checked against what is left of the file before it is used, and the
header as a whole is bounded. Source: docs/gguf.md of the ggml project, version 3.
"""

import re
import struct
from collections import Counter
from collections.abc import Mapping
from typing import BinaryIO

import msgspec

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_HEADER_BYTES = 128 * 2**20
MAX_ENTRIES = 2**16
MAX_TENSORS = 2**20
MAX_PARTS = 1000
MAX_KEY_BYTES = 2**16 - 1
MAX_TENSOR_NAME_BYTES = 63
MAX_TEXT_BYTES = 2**20
"""A longer text in the metadata is passed over, as arrays are."""
DEFAULT_ALIGNMENT = 32
_READ_BYTES = 2**20

# Scalars by their type in the file; 8 is a text and 9 an array.
_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_U32, _U64, _BOOL, _TEXT, _ARRAY = _SCALARS[4], _SCALARS[10], 7, 8, 9

# Name, elements and bytes of a block of each tensor type. Source: ggml.c, type_traits.
TENSOR_TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
    42: ("Q2_0", 64, 18),
}

# What `general.file_type` says of the whole file. Source: llama.h, enum llama_ftype.
FILE_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4",
    39: "NVFP4",
    40: "Q1_0",
    41: "Q2_0",
}

Scalar = int | float | bool | str

_SPLIT = re.compile(r"(.+)-(\d{5})-of-(\d{5})")


class BrokenGguf(ValueError):
    """The file is none, or is damaged; the message is a clause that completes `the file ...`."""


class GgufHeader(msgspec.Struct, frozen=True):
    """What a file says of itself. `metadata` holds scalars and texts; arrays are left out."""

    metadata: Mapping[str, Scalar]
    tensor_types: Mapping[str, int]

    @property
    def architecture(self) -> str | None:
        value = self.metadata.get("general.architecture")
        return value if isinstance(value, str) and value else None

    @property
    def quantization(self) -> str | None:
        """The number format of the weights: what the file says, else that of most tensors."""
        said = self.metadata.get("general.file_type")
        if isinstance(said, int) and said in FILE_TYPES:
            return FILE_TYPES[said]
        return max(self.tensor_types, key=lambda name: self.tensor_types[name], default=None)

    @property
    def has_weights(self) -> bool:
        """False for a file that holds a vocabulary alone; the first of several may hold none."""
        parts = self.metadata.get("split.count", 1)
        return bool(self.tensor_types) or (isinstance(parts, int) and parts > 1)

    def number(self, key: str) -> int | None:
        """Return an integer of the model's own section, such as `context_length`."""
        value = self.metadata.get(f"{self.architecture}.{key}")
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def text(self, key: str) -> str | None:
        value = self.metadata.get(key)
        return value if isinstance(value, str) and value else None


def split_parts(stem: str) -> tuple[str, list[str]]:
    """Return the name of a model and the stems of its files, given the stem of one of them.

    Raises BrokenGguf when the stem says that it is a part of nothing. Source: llama_split_path.
    """
    found = _SPLIT.fullmatch(stem)
    if found is None:
        return stem, [stem]
    name, number, count = found[1], int(found[2]), int(found[3])
    if not 1 <= number <= count <= MAX_PARTS:
        raise BrokenGguf(f"is part {number} of {count}")
    return name, [f"{name}-{part:05}-of-{count:05}" for part in range(1, count + 1)]


def read_header(stream: BinaryIO, size_bytes: int) -> GgufHeader:
    """Return the header of the file in `stream`, which has `size_bytes`.

    Every tensor lies within the file. Raises BrokenGguf when anything is not as it must be.
    """
    reader = _Reader(stream, min(size_bytes, MAX_HEADER_BYTES))
    if reader.take(4) != MAGIC:
        raise BrokenGguf("is not a GGUF file")
    version = reader.number(_U32)
    if version not in VERSIONS:
        raise BrokenGguf(f"has version {version} of the format; known are 2 and 3")
    tensors = _require(reader.number(_U64), MAX_TENSORS, "tensors")
    entries = _require(reader.number(_U64), MAX_ENTRIES, "entries of metadata")
    metadata = _read_metadata(reader, entries)
    types, data_bytes = _read_tensors(reader, tensors, _alignment(metadata))
    data_at = _pad(reader.position, _alignment(metadata))
    if data_bytes and data_at + data_bytes > size_bytes:
        missing = data_at + data_bytes - size_bytes
        raise BrokenGguf(f"is cut off: {missing} bytes of its tensors are missing")
    return GgufHeader(metadata, types)


class _Reader:
    """Takes from the beginning of a stream, never beyond `limit` bytes."""

    def __init__(self, stream: BinaryIO, limit: int) -> None:
        self._stream = stream
        self._limit = limit
        self._buffer = bytearray()
        self.position = 0

    def take(self, count: int) -> bytes:
        start = self._advance(count)
        return bytes(self._buffer[start : self.position])

    def number(self, form: struct.Struct) -> int:
        start = self._advance(form.size)
        value: int = form.unpack_from(self._buffer, start)[0]
        return value

    def text(self, limit: int) -> str | None:
        """Return the text that comes next; None when it is longer than `limit` bytes."""
        length = self.number(_U64)
        if length > limit:
            self.skip(length)
            return None
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise BrokenGguf("has a text that is not UTF-8 in its header") from None

    def skip(self, count: int) -> None:
        self._advance(count)

    def skip_texts(self, count: int) -> None:
        """Pass over the strings of a vocabulary: hundreds of thousands, so nothing is called."""
        buffer, length_at = self._buffer, _U64.unpack_from
        position = self.position
        for _ in range(count):
            if position + 8 > len(buffer):
                self.position = position
                self.require(8)
                self._fill(position + 8)
            position += 8 + length_at(buffer, position)[0]
        self.position = position
        self.require(0)

    def require(self, count: int) -> None:
        """Raise BrokenGguf unless `count` bytes may come: asked before anything is allocated."""
        if count > self._limit - self.position:
            raise BrokenGguf("is cut off or damaged: its header does not end where it should")

    def _advance(self, count: int) -> int:
        self.require(count)
        start = self.position
        self._fill(start + count)
        self.position += count
        return start

    def _fill(self, end: int) -> None:
        """Read on until the first `end` bytes are there."""
        while len(self._buffer) < end:
            wanted = min(self._limit - len(self._buffer), _READ_BYTES)
            chunk = self._stream.read(wanted)
            if not chunk:
                raise BrokenGguf("is cut off: its header ends too soon")
            self._buffer += chunk


def _read_metadata(reader: _Reader, entries: int) -> dict[str, Scalar]:
    metadata: dict[str, Scalar] = {}
    keys: set[str] = set()
    for _ in range(entries):
        key = reader.text(MAX_KEY_BYTES)
        if not key or key in keys:
            raise BrokenGguf("has metadata without a name of its own")
        keys.add(key)
        value = _read_value(reader, reader.number(_U32))
        if value is not None:
            metadata[key] = value
    return metadata


def _read_value(reader: _Reader, kind: int) -> Scalar | None:
    if kind == _TEXT:
        return reader.text(MAX_TEXT_BYTES)
    if kind == _ARRAY:
        _skip_array(reader)
        return None
    if kind == _BOOL:
        return reader.take(1) != b"\0"
    return reader.number(_scalar(kind))


def _skip_array(reader: _Reader) -> None:
    kind, count = reader.number(_U32), reader.number(_U64)
    if kind == _TEXT:
        reader.require(count * _U64.size)
        reader.skip_texts(count)
    else:
        reader.skip(count * _scalar(kind).size)


def _scalar(kind: int) -> struct.Struct:
    if kind not in _SCALARS:
        raise BrokenGguf(f"has metadata of the unknown type {kind}")
    return _SCALARS[kind]


def _read_tensors(reader: _Reader, count: int, alignment: int) -> tuple[dict[str, int], int]:
    """Return how many tensors have each type, and the bytes of all, as they follow each other.

    Each begins at the alignment; writers differ on whether the last is padded.
    """
    types: Counter[str] = Counter()
    names: set[str] = set()
    end = 0
    for _ in range(count):
        name = reader.text(MAX_TENSOR_NAME_BYTES)
        if name is None or name in names:
            raise BrokenGguf("has a tensor without a name of its own")
        names.add(name)
        shape = [reader.number(_U64) for _ in range(_require(reader.number(_U32), 4, "dimensions"))]
        kind, offset = reader.number(_U32), reader.number(_U64)
        if kind not in TENSOR_TYPES:
            raise BrokenGguf(f"has a tensor of the unknown type {kind}")
        if offset != _pad(end, alignment):
            raise BrokenGguf("has tensors that do not follow each other")
        types[TENSOR_TYPES[kind][0]] += 1
        end = offset + _tensor_bytes(shape, kind)
    return dict(types), end


def _tensor_bytes(shape: list[int], kind: int) -> int:
    _, block, block_bytes = TENSOR_TYPES[kind]
    elements = 1
    for dimension in shape:
        elements *= dimension
    if not shape or elements == 0 or elements >= 2**63 or shape[0] % block:
        raise BrokenGguf("has a tensor of an impossible shape")
    return elements // block * block_bytes


def _alignment(metadata: Mapping[str, Scalar]) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(value, int) or value <= 0 or value & (value - 1):
        raise BrokenGguf("has an alignment that is no power of two")
    return value


def _require(count: int, most: int, what: str) -> int:
    if count > most:
        raise BrokenGguf(f"has {count} {what}; at most {most} are read")
    return count


def _pad(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment
