import io
import struct
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.cards import read_gguf_card
from gateway.core.gguf import BrokenGguf, GgufHeader, read_header, split_parts
from tests.gguf_bytes import LLAMA, write_gguf

FILE = write_gguf()


def read(data: bytes) -> GgufHeader:
    return read_header(io.BytesIO(data), len(data))


def test_a_header_gives_its_scalars_and_passes_over_arrays() -> None:
    header = read(FILE)
    expected = {key: value for key, value in LLAMA.items() if not isinstance(value, list)}
    assert header.metadata == expected
    assert header.tensor_types == {"F32": 1, "Q8_0": 1}
    assert header.number("context_length") == 8192
    assert header.quantization == "Q4_K_M"


def test_without_a_file_type_most_tensors_tell_the_quantization() -> None:
    tensors = [("a", (32,), 0), ("b", (32,), 8), ("c", (32,), 8)]
    assert read(write_gguf({}, tensors)).quantization == "Q8_0"


@pytest.mark.parametrize(("parts", "generates_text"), [(1, False), (2, True)])
def test_a_file_without_tensors_is_a_model_only_as_one_of_several(
    parts: int, generates_text: bool
) -> None:
    data = write_gguf({"general.architecture": "llama", "split.count": parts}, [])
    assert read_gguf_card(read(data)).generates_text == generates_text


@pytest.mark.parametrize(
    ("changes", "generates_text"),
    [
        ({}, True),
        ({"general.type": "model"}, True),
        ({"general.type": "mmproj"}, False),
        ({"general.type": "adapter"}, False),
        ({"general.architecture": "nomic-bert"}, False),
        ({"general.architecture": 5}, False),
    ],
)
def test_a_card_says_whether_the_model_generates_text(
    changes: dict[str, Any], generates_text: bool
) -> None:
    card = read_gguf_card(read(write_gguf({**LLAMA, **changes})))
    assert card.generates_text == generates_text
    assert (card.format, card.has_chat_template) == ("gguf", True)


def test_every_truncation_is_found() -> None:
    for length in range(len(FILE)):
        with pytest.raises(BrokenGguf):
            read(FILE[:length])


def test_no_bit_that_flips_makes_it_raise_anything_else() -> None:
    survived = 0
    for index in range(len(FILE) * 8):
        data = bytearray(FILE)
        data[index // 8] ^= 1 << index % 8
        try:
            read(bytes(data))
            survived += 1
        except BrokenGguf:
            pass
    assert 0 < survived < len(FILE) * 8


@given(st.binary(max_size=200))
def test_no_bytes_after_the_magic_make_it_raise_anything_else(tail: bytes) -> None:
    with suppress(BrokenGguf):
        read(b"GGUF" + struct.pack("<I", 3) + tail)


def declare(tensors: int = 0, entries: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, entries) + rest


KEY = struct.pack("<Q", 1) + b"k"
HUGE = 2**62


@pytest.mark.parametrize(
    "data",
    [
        declare(tensors=HUGE),
        declare(entries=HUGE),
        declare(entries=1, rest=struct.pack("<Q", HUGE)),
        declare(entries=1, rest=KEY + struct.pack("<IQ", 8, HUGE)),
        declare(entries=1, rest=KEY + struct.pack("<IIQ", 9, 8, HUGE)),
        declare(entries=1, rest=KEY + struct.pack("<IIQ", 9, 10, HUGE)),
        declare(entries=1, rest=KEY + struct.pack("<IIQ", 9, 9, 1)),
        declare(entries=1, rest=KEY + struct.pack("<I", 99)),
        declare(entries=2, rest=(KEY + struct.pack("<I?", 7, True)) * 2),
        declare(tensors=1, rest=KEY + struct.pack("<IQQQIQ", 3, HUGE, HUGE, HUGE, 0, 0)),
        declare(tensors=1, rest=KEY + struct.pack("<IQIQ", 1, 4, 0, 32)),
        declare(tensors=1, rest=KEY + struct.pack("<IQIQ", 1, 4, 5, 0)),
        declare(tensors=1, rest=KEY + struct.pack("<IQIQ", 1, 31, 8, 0)),
        declare(tensors=1, rest=KEY + struct.pack("<I", 5)),
        declare(tensors=2, rest=(KEY + struct.pack("<IQIQ", 1, 8, 0, 0)) * 2),
        write_gguf({"general.alignment": 0}),
        write_gguf({"general.alignment": 33}),
        write_gguf(version=1),
        write_gguf({"k": "x"}).replace(b"x", b"\xff"),
        b"PK\x03\x04" + FILE[4:],
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_allocated(data: bytes) -> None:
    with pytest.raises(BrokenGguf):
        read(data + b"\0" * 64)


def test_a_reader_takes_no_more_than_the_header_of_a_large_file() -> None:
    class Counting(io.BytesIO):
        taken = 0

        def read(self, size: int | None = -1) -> bytes:
            data = super().read(size)
            self.taken += len(data)
            return data

    data = write_gguf({}, [("big", (2**21,), 0)])
    stream = Counting(data)
    read_header(stream, len(data))
    assert stream.taken <= 2**20 < len(data)


@pytest.mark.parametrize(
    ("stem", "name", "parts"),
    [
        ("x", "x", ["x"]),
        ("x-00002-of-00002", "x", ["x-00001-of-00002", "x-00002-of-00002"]),
        ("x-1-of-2", "x-1-of-2", ["x-1-of-2"]),
    ],
)
def test_the_parts_of_a_split_model_are_named(stem: str, name: str, parts: list[str]) -> None:
    assert split_parts(stem) == (name, parts)


@pytest.mark.parametrize("stem", ["x-00000-of-00002", "x-00003-of-00002", "x-00001-of-99999"])
def test_a_part_of_nothing_is_refused(stem: str) -> None:
    with pytest.raises(BrokenGguf):
        split_parts(stem)
