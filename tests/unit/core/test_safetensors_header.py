import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.safetensors import BrokenSafetensors, read_tensors
from tests.hub_folders import tensor_file

SOUND = tensor_file()


def read(data: bytes) -> frozenset[str]:
    return read_tensors(io.BytesIO(data), len(data))


def with_table(table: Any, data: bytes = bytes(10)) -> bytes:
    header = table if isinstance(table, bytes) else json.dumps(table).encode()
    return len(header).to_bytes(8, "little") + header + data


def tensor(begin: int, end: int, **other: Any) -> dict[str, Any]:
    return {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end], **other}


def test_a_sound_file_names_its_tensors() -> None:
    assert read(SOUND) == {"embed", "head"}


def test_what_safetensors_itself_writes_is_sound() -> None:
    import torch
    from safetensors.torch import save

    kinds = [torch.float32, torch.bfloat16, torch.int8, torch.bool, torch.float8_e4m3fn]
    tensors = {str(kind): torch.zeros(3, 2, dtype=kind) for kind in kinds}
    tensors |= {"scalar": torch.tensor(1.0), "empty": torch.zeros(0, 4)}
    assert read(save(tensors, {"format": "pt"})) == set(tensors)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "too short"),
        (b"\xff" * 8, "does not fit"),
        (SOUND[:-1], "1 bytes of its tensors are missing"),
        (SOUND[:20], "does not fit"),
        (SOUND + b"x", "1 bytes that belong to no tensor"),
        (with_table(b" {}", b""), "no table"),
        (with_table(b"{", b""), "not valid JSON"),
        (with_table(b'{"a":' * 5000, b""), "not valid JSON"),
        (with_table(b'{"a": 1, "a": 2}'), "not valid JSON"),
        (with_table({"a": 1}), "describes no tensors"),
        (with_table({"a": {**tensor(0, 10), "dtype": 1}}), "describes no tensors"),
        (with_table({"a": tensor(0, 10), "__metadata__": {"x": 1}}), "describes no tensors"),
        (with_table({"a": tensor(0, 10, dtype="U7")}), "unknown type"),
        (with_table({"a": tensor(0, 10, shape=[-10])}), "impossible shape"),
        (with_table({"a": tensor(0, 10, shape=[9])}), "not that of its shape"),
        (with_table({"a": tensor(0, 10, shape=[2**62, 2**62])}), "not that of its shape"),
        (with_table({"a": tensor(0, 5), "b": tensor(6, 10)}), "do not follow"),
        (with_table({"a": tensor(0, 6), "b": tensor(5, 10)}), "do not follow"),
        (with_table({"a": tensor(-1, 10)}), "do not follow"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(data: bytes, says: str) -> None:
    with pytest.raises(BrokenSafetensors, match=says):
        read(data)


@given(st.binary(max_size=200), st.booleans())
def test_nothing_but_a_verdict_comes_of_any_bytes(data: bytes, is_header: bool) -> None:
    try:
        read(with_table(data, b"") if is_header else data)
    except BrokenSafetensors as error:
        assert str(error)


def test_it_refuses_what_safetensors_refuses_of_flipped_headers() -> None:
    """What the library would not read must be known before; what it reads may be refused."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    header_end = 8 + int.from_bytes(SOUND[:8], "little")
    refused = 0
    for position in range(header_end):
        for bit in (0x01, 0x20, 0x80):
            flipped = bytearray(SOUND)
            flipped[position] ^= bit
            try:
                load(bytes(flipped))
            except (SafetensorError, KeyError):
                refused += 1
                with pytest.raises(BrokenSafetensors):
                    read(bytes(flipped))
    assert refused > header_end  # most flips are fatal
