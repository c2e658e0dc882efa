"""Ollama's format for embeddings: a request to bytes, an answer to vectors. Pure: no I/O.

Source: Ollama's docs/api.md and EmbedHandler in server/routes.go.
"""

import msgspec

from gateway.core.embeddings import Embeddings, EmbedRequest, cut_vector, pack_vector
from gateway.core.errors import InvalidRequest, ProviderProtocolError
from gateway.core.events import Usage
from gateway.core.names import ModelRef
from gateway.providers.ollama_fault_wire import PROVIDER
from gateway.providers.ollama_request_wire import encode_keep_alive
from gateway.providers.text_wire import read_count

_MAX_DIMENSIONS = 16384
_DIGITS = 32
_MAX_FLOAT32 = 3.4028234e38
_MAX_HEAD_BYTES = 64 * 1024


class _OptionsBody(msgspec.Struct):
    num_ctx: int


class _Body(msgspec.Struct, omit_defaults=True, kw_only=True):
    model: str
    input: list[str]
    # No default: left out, it would be true, and an input that is too long would be cut unsaid.
    truncate: bool
    options: _OptionsBody | None = None
    keep_alive: float | int | None = None


class _Answer(msgspec.Struct):
    # Raw, and read one by one: all at once would hold the interpreter for too long.
    embeddings: list[msgspec.Raw]
    prompt_eval_count: int | None = None


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Answer).decode
_decode_vector = msgspec.json.Decoder(list[float]).decode


def encode_embed(request: EmbedRequest, ref: ModelRef, num_ctx: int | None = None) -> bytes:
    """Return the body of `/api/embed`; raises InvalidRequest for token ids, which Ollama has no
    place for.

    `num_ctx` must be the same for every request to a model: a change makes Ollama load it anew.
    """
    texts = [item for item in request.inputs if isinstance(item, str)]
    if len(texts) < len(request.inputs):
        raise InvalidRequest(
            "Ollama takes texts and no token ids.",
            hint="Send text, which LangChain does with check_embedding_ctx_length=False.",
            param="input",
        )
    body = _Body(
        model=ref.model,
        input=texts,
        truncate=request.truncate,
        options=None if num_ctx is None else _OptionsBody(num_ctx),
        keep_alive=encode_keep_alive(request.keep_alive_s),
    )
    return _encode(body)


def max_answer_bytes(request: EmbedRequest) -> int:
    """Return how long an answer to the request can be at most."""
    return _MAX_HEAD_BYTES + len(request.inputs) * _MAX_DIMENSIONS * _DIGITS


def read_embeddings(data: bytes, request: EmbedRequest, ref: ModelRef) -> Embeddings:
    """Return the vectors of an answer, cut here to the dimensions asked for: older servers do not.

    Raises ProviderProtocolError for an answer that is not one vector for each input, InvalidRequest
    for more dimensions than there are.
    """
    try:
        answer = _decode(data)
        vectors = tuple(_read_vector(raw, request.dimensions) for raw in answer.embeddings)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProviderProtocolError(PROVIDER, "Ollama answered no embeddings.") from error
    if len(vectors) != len(request.inputs) or len(set(map(len, vectors))) != 1:
        raise ProviderProtocolError(
            PROVIDER, f"Ollama answered other vectors than {len(request.inputs)} of one size."
        )
    return Embeddings(ref, vectors, Usage(read_count(answer.prompt_eval_count or 0)))


def _read_vector(raw: msgspec.Raw, dimensions: int | None) -> bytes:
    numbers = _decode_vector(raw)
    if not numbers or max(map(abs, numbers)) > _MAX_FLOAT32:
        raise ProviderProtocolError(PROVIDER, "Ollama answered a vector that is none.")
    return pack_vector(cut_vector(numbers, dimensions))
