"""Embeddings of the OpenAI API: a request to bytes, an answer to vectors. Pure: no I/O."""

import base64
import binascii
import math
from array import array
from typing import Any

import msgspec

from gateway.core.embeddings import (
    Embeddings,
    EmbedRequest,
    cut_vector,
    pack_vector,
    unpack_vector,
)
from gateway.core.errors import GatewayError, UnsupportedCapability
from gateway.core.events import Usage
from gateway.core.names import ModelRef
from gateway.providers.openai_fault_wire import Faults
from gateway.providers.openai_wire import Dialect, encode_body
from gateway.providers.text_wire import read_count

EMBEDDINGS = "/embeddings"

_MAX_DIMENSIONS = 16384
_DIGITS = 32
_MAX_FLOAT32 = 3.4028234e38
_MAX_HEAD_BYTES = 64 * 1024


class _Item(msgspec.Struct):
    # Raw, and read one by one: all at once would hold the interpreter for too long.
    embedding: msgspec.Raw
    index: int | None = None


class _UsagePart(msgspec.Struct):
    prompt_tokens: int | None = None


class _Answer(msgspec.Struct):
    data: list[_Item]
    usage: _UsagePart | None = None


_decode = msgspec.json.Decoder(_Answer).decode
_decode_numbers = msgspec.json.Decoder(list[float]).decode
_decode_text = msgspec.json.Decoder(str).decode


def encode_embed(request: EmbedRequest, model: str, dialect: Dialect) -> bytes:
    """Return the body of `/embeddings`; raises UnsupportedCapability for inputs that may be cut.

    `dimensions` are cut here: few servers know the field, and fewer models.
    """
    if request.truncate:
        raise UnsupportedCapability(
            "An OpenAI-compatible server cuts no inputs.",
            hint="Send shorter inputs, without 'truncate'.",
            param="truncate",
        )
    body: dict[str, Any] = {"model": model, "input": request.inputs}
    if dialect.knows_base64:
        body["encoding_format"] = "base64"
    return encode_body(body)


def max_answer_bytes(request: EmbedRequest) -> int:
    """Return how long an answer to the request can be at most."""
    return _MAX_HEAD_BYTES + len(request.inputs) * _MAX_DIMENSIONS * _DIGITS


def read_embeddings(
    data: bytes, request: EmbedRequest, ref: ModelRef, faults: Faults
) -> Embeddings:
    """Return the vectors of an answer, numbers or base64 whatever was asked for.

    Raises ProviderProtocolError for an answer that is not one vector for each input, InvalidRequest
    for more dimensions than there are.
    """
    try:
        answer = _decode(data)
        items = answer.data
        if any(item.index is not None for item in items):
            items = sorted(items, key=lambda item: item.index or 0)
            if [item.index for item in items] != list(range(len(items))):
                raise _no_vectors(faults)
        vectors = tuple(_read_vector(item.embedding, request.dimensions, faults) for item in items)
    except (msgspec.DecodeError, binascii.Error, ValueError, RecursionError) as error:
        raise _no_vectors(faults) from error
    if len(vectors) != len(request.inputs) or len(set(map(len, vectors))) != 1:
        raise _no_vectors(faults)
    tokens = answer.usage.prompt_tokens if answer.usage else None
    return Embeddings(ref, vectors, Usage(read_count(tokens or 0)))


def _read_vector(raw: msgspec.Raw, dimensions: int | None, faults: Faults) -> bytes:
    if bytes(raw)[:1] == b'"':
        packed = base64.b64decode(_decode_text(raw), validate=True)
        if len(packed) % array("f").itemsize:
            raise _no_vectors(faults)
        numbers = unpack_vector(packed)
    else:
        numbers = _decode_numbers(raw)
    if not numbers or not all(math.isfinite(n) and abs(n) <= _MAX_FLOAT32 for n in numbers):
        raise _no_vectors(faults)
    return pack_vector(cut_vector(numbers, dimensions))


def _no_vectors(faults: Faults) -> GatewayError:
    return faults.unreadable("answered no vector for each input")
