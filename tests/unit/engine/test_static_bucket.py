from hypothesis import given
from hypothesis import strategies as st

from gateway.engine.decoding.static_step import Bucket, choose_bucket


def test_sizes_double() -> None:
    assert choose_bucket(1, 1, 64, 8192) == Bucket(1, 256)
    assert choose_bucket(3, 257, 64, 8192) == Bucket(4, 512)
    assert choose_bucket(33, 5000, 64, 8192) == Bucket(64, 8192)


def test_a_bucket_is_never_larger_than_the_cache() -> None:
    assert choose_bucket(3, 300, 3, 320) == Bucket(3, 320)


@given(st.integers(1, 64), st.integers(1, 9000), st.integers(0, 64), st.integers(0, 9000))
def test_it_has_room_for_what_is_asked(rows: int, width: int, more: int, longer: int) -> None:
    found = choose_bucket(rows, width, rows + more, width + longer)
    assert rows <= found.rows <= rows + more
    assert width <= found.width <= width + longer
    assert found.rows < 2 * rows
    assert found.width < max(2 * width, 257)
