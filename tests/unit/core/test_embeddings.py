import math

import pytest

from gateway.core.embeddings import cut_vector, pack_vector, unpack_vector
from gateway.core.errors import InvalidRequest


def test_a_vector_is_little_endian_float32() -> None:
    assert pack_vector([1.0, -2.0]) == bytes.fromhex("0000803f000000c0")
    assert unpack_vector(bytes.fromhex("0000803f000000c0")) == [1.0, -2.0]


def test_a_cut_vector_has_length_one_again() -> None:
    assert cut_vector([3.0, 4.0, 12.0], 2) == [0.6, 0.8]
    assert math.isclose(math.hypot(*cut_vector([3.0, 4.0, 12.0], 3)), 1)


def test_without_dimensions_a_vector_stays_as_it_is() -> None:
    assert cut_vector([3.0, 4.0], None) == [3.0, 4.0]


def test_nothing_cannot_be_scaled_and_stays_nothing() -> None:
    assert cut_vector([0.0, 0.0, 1.0], 2) == [0.0, 0.0]


def test_more_dimensions_than_there_are_are_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"'dimensions' is 3.*have 2"):
        cut_vector([1.0, 2.0], 3)
