"""What a caller asks of an embedding model, and what comes back. Frozen plain data."""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Iterable

import msgspec

from gateway.core.errors import InvalidRequest
from gateway.core.events import Usage
from gateway.core.names import ModelRef

_FLOAT = "f"  # four bytes on every platform that torch runs on


class EmbedRequest(msgspec.Struct, frozen=True):
    """One vector is wanted for each input, which is a text or the model's own token ids.

    An input that is too long is cut if `truncate`, else refused. `dimensions` asks for the first
    so many numbers of each vector, at unit length again. `keep_alive_s` is seconds (negative: for
    ever). Requests of one `caller` share his turns.
    """

    id: str
    model: str
    inputs: tuple[str | tuple[int, ...], ...]
    dimensions: int | None = None
    truncate: bool = False
    keep_alive_s: float | None = None
    caller: str = ""


class Embeddings(msgspec.Struct, frozen=True):
    """One vector for each input, in its order; a vector is little-endian float32 numbers.

    Bytes, because a thousand vectors are a million numbers: too many to be objects.
    """

    ref: ModelRef
    vectors: tuple[bytes, ...]
    usage: Usage


def pack_vector(numbers: Iterable[float]) -> bytes:
    """Return the numbers as little-endian float32."""
    return _swapped(array(_FLOAT, numbers)).tobytes()


def unpack_vector(vector: bytes) -> list[float]:
    return _swapped(array(_FLOAT, vector)).tolist()


def cut_vector(numbers: list[float], dimensions: int | None) -> list[float]:
    """Return the first `dimensions` numbers, scaled to length 1; all of them as they are for None.

    Raises InvalidRequest when there are fewer.
    """
    if dimensions is None:
        return numbers
    require_dimensions(dimensions, len(numbers))
    head = numbers[:dimensions]
    length = math.hypot(*head)
    return [number / length for number in head] if length else head


def require_dimensions(wanted: int, there: int) -> None:
    """Raise InvalidRequest when a model's vectors are shorter than what is wanted of them."""
    if wanted > there:
        raise InvalidRequest(
            f"'dimensions' is {wanted}; the vectors of this model have {there}.",
            param="dimensions",
        )


def _swapped(numbers: array[float]) -> array[float]:
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
