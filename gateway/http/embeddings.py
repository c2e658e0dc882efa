"""Embeddings in two forms: `POST /v1/embeddings` as OpenAI has it, `POST /api/v1/embed` natively.

Source: the OpenAI API reference for embeddings; what is not named here is ignored, and null is the
same as absent. `keep_alive` is taken beyond it.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal, TypeVar

import anyio.to_thread
import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway import telemetry
from gateway.core.embeddings import Embeddings, EmbedRequest, unpack_vector
from gateway.core.errors import InvalidRequest
from gateway.http.body import decode_body, read_request
from gateway.http.caller import caller_of
from gateway.http.decision_ids import note_decision
from gateway.http.disconnect import unless_disconnected
from gateway.http.encoding import encode_json
from gateway.http.options import parse_keep_alive
from gateway.services.gateway import Gateway
from gateway.settings import Settings

MAX_VALUES = 400_000
"""Values of a body, token ids included: clients of OpenAI send up to 300,000 tokens at once."""

T = TypeVar("T", bound="str | list[Any]")
TokenId = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]


class EmbeddingBody(msgspec.Struct, kw_only=True):
    """What both forms share. `input` is a text or token ids, or a list of either."""

    model: str
    input: str | list[str | TokenId | list[TokenId]]
    dimensions: Annotated[int, msgspec.Meta(ge=1, lt=2**31)] | None = None
    encoding_format: Literal["float", "base64"] | None = None
    keep_alive: float | str | None = None


class EmbedBody(EmbeddingBody, kw_only=True):
    """The native body: an input may be cut to the model's length, if it says so."""

    truncate: bool | None = None


class Wanted(msgspec.Struct, frozen=True):
    """The vectors that are wanted, and in which form."""

    request: EmbedRequest
    in_base64: bool


class EmbeddingsFace:
    """The routes of both forms."""

    def __init__(self, gateway: Gateway, settings: Settings) -> None:
        self._gateway = gateway
        self._settings = settings

    def routes(self) -> list[Route]:
        return [
            Route("/v1/embeddings", self.embeddings, methods=["POST"]),
            Route("/api/v1/embed", self.embed, methods=["POST"]),
        ]

    async def embeddings(self, request: Request) -> Response:
        return await self._answer(request, "openai", _OPENAI, _describe_openai)

    async def embed(self, request: Request) -> Response:
        return await self._answer(request, "native", _NATIVE, _describe_native)

    async def _answer(
        self,
        request: Request,
        face: str,
        decoder: "msgspec.json.Decoder[Any]",
        describe: Callable[[Embeddings, list[msgspec.Raw]], dict[str, Any]],
    ) -> Response:
        parse = partial(
            parse_embed_request,
            decoder=decoder,
            request_id=telemetry.request_id.get(),
            max_inputs=self._settings.max_embed_inputs,
        )
        wanted = await read_request(request, self._settings.max_body_bytes, parse)
        embed = partial(
            self._gateway.embeddings.embed,
            wanted.request,
            face=face,
            caller=caller_of(request),
            decided=partial(note_decision, request.scope),
        )
        found = await unless_disconnected(request, embed)
        # In a thread, vector by vector: a thousand of them are a million numbers to be written.
        data = await anyio.to_thread.run_sync(_encode, found, wanted.in_base64, describe)
        return Response(data, media_type="application/json")


def parse_embed_request(
    data: bytes,
    *,
    decoder: "msgspec.json.Decoder[EmbeddingBody]",
    request_id: str,
    max_inputs: int,
) -> Wanted:
    """Return what a body of either form asks for; raises InvalidRequest and its kind."""
    body = decode_body(data, decoder, max_values=MAX_VALUES)
    request = EmbedRequest(
        id=request_id,
        model=body.model,
        inputs=_read_inputs(body.input, max_inputs),
        dimensions=body.dimensions,
        truncate=isinstance(body, EmbedBody) and bool(body.truncate),
        keep_alive_s=parse_keep_alive(body.keep_alive),
    )
    return Wanted(request, body.encoding_format == "base64")


def _read_inputs(
    given: str | list[str | int | list[int]], max_inputs: int
) -> tuple[str | tuple[int, ...], ...]:
    if isinstance(given, str):
        return (_require_some(given, "input"),)
    ids = [item for item in given if isinstance(item, int)]
    if ids and len(ids) == len(given):
        return (tuple(ids),)
    if len(given) > max_inputs:
        raise InvalidRequest(
            f"'input' has {len(given)} items; {max_inputs} are allowed in one request.",
            hint="Send several requests.",
            param="input",
        )
    inputs: list[str | tuple[int, ...]] = []
    for index, item in enumerate(_require_some(given, "input")):
        if isinstance(item, int):
            raise InvalidRequest("'input' mixes token ids with other inputs.", param="input")
        whole = _require_some(item, f"input[{index}]")
        inputs.append(whole if isinstance(whole, str) else tuple(whole))
    return tuple(inputs)


def _require_some(value: T, param: str) -> T:
    if not value:
        raise InvalidRequest(f"'{param}' is empty.", param=param)
    return value


def _encode(
    found: Embeddings,
    in_base64: bool,
    describe: Callable[[Embeddings, list[msgspec.Raw]], dict[str, Any]],
) -> bytes:
    # msgspec writes bytes as base64.
    written = (vector if in_base64 else unpack_vector(vector) for vector in found.vectors)
    vectors = [msgspec.Raw(msgspec.json.encode(vector)) for vector in written]
    return encode_json(describe(found, vectors))


def _describe_openai(found: Embeddings, vectors: list[msgspec.Raw]) -> dict[str, Any]:
    tokens = found.usage.prompt_tokens
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": vector}
            for index, vector in enumerate(vectors)
        ],
        "model": str(found.ref),
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _describe_native(found: Embeddings, vectors: list[msgspec.Raw]) -> dict[str, Any]:
    usage = {"prompt_tokens": found.usage.prompt_tokens}
    return {"model": str(found.ref), "embeddings": vectors, "usage": usage}


_OPENAI = msgspec.json.Decoder(EmbeddingBody)
_NATIVE = msgspec.json.Decoder(EmbedBody)
