"""Embeddings of Ollama: what is sent, what is made of the answer, and of every bad one."""

import asyncio
import json
import math
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from gateway.core.embeddings import EmbedRequest, unpack_vector
from gateway.core.errors import (
    ContextLengthExceeded,
    GatewayError,
    IncompleteStream,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    ProviderProtocolError,
    ProviderTimeout,
    ProviderUnavailable,
    UnsupportedCapability,
)
from gateway.core.names import parse_ref
from gateway.providers.ollama import OllamaService
from tests.integration.ollama_peer import Do, OllamaPeer, Script, answer, chunks, raw
from tests.integration.providers.ollama_support import serving

REF = parse_ref("ollama", "nomic-embed-text")
TWO = [[0.6, 0.8], [1.0, 0.0]]


@pytest.fixture
async def peer() -> AsyncIterator[OllamaPeer]:
    async with OllamaPeer() as peer:
        peer.add_model("nomic-embed-text", capabilities=["embedding"], context_length=8)
        peer.add_model("llama3.2")
        yield peer


def ask(*texts: Any, **fields: Any) -> EmbedRequest:
    return EmbedRequest("r", "nomic-embed-text", texts, **fields)


async def fail(
    peer: OllamaPeer, script: Script | None = None, request: EmbedRequest | None = None, **how: Any
) -> GatewayError:
    if script is not None:
        peer.script_route("/api/embed", script)
    async with serving(peer.url, **how) as service:
        with pytest.raises(GatewayError) as caught:
            await service.embed(request or ask("one", "two"), REF)
    return caught.value


async def test_every_text_gets_its_vector_and_the_tokens_are_ollama_s_count(
    peer: OllamaPeer,
) -> None:
    async with serving(peer.url, num_ctx=2048) as service:
        found = await service.embed(ask("a bird", "the fish swims", keep_alive_s=60.0), REF)
    vectors = [unpack_vector(vector) for vector in found.vectors]
    raw_vectors = [(2, 1, 4, 1), (3, 3, 4, 1)]
    for vector, numbers in zip(vectors, raw_vectors, strict=True):
        assert vector == pytest.approx([n / math.hypot(*numbers) for n in numbers], rel=1e-6)
    assert (found.ref, found.usage.prompt_tokens) == (REF, 5)
    assert peer.requests[-1].body == {
        "model": "nomic-embed-text:latest",
        "input": ["a bird", "the fish swims"],
        "truncate": False,
        "options": {"num_ctx": 2048},
        "keep_alive": 60,
    }


async def test_dimensions_are_cut_here_and_scaled_to_length_one(peer: OllamaPeer) -> None:
    async with serving(peer.url) as service:
        found = await service.embed(ask("a bird", dimensions=2), REF)
    assert unpack_vector(found.vectors[0]) == pytest.approx([2 / 5**0.5, 1 / 5**0.5])
    assert "dimensions" not in peer.requests[-1].body
    error = await fail(peer, request=ask("a", dimensions=5))
    assert isinstance(error, InvalidRequest) and error.param == "dimensions"


async def test_a_text_that_is_too_long_is_refused_unless_it_may_be_cut(peer: OllamaPeer) -> None:
    assert isinstance(await fail(peer, request=ask("word " * 9)), ContextLengthExceeded)
    async with serving(peer.url) as service:
        found = await service.embed(ask("word " * 9, truncate=True), REF)
    assert found.usage.prompt_tokens == 8


async def test_token_ids_are_not_sent(peer: OllamaPeer) -> None:
    error = await fail(peer, request=ask("text", (1, 2)))
    assert isinstance(error, InvalidRequest) and "token ids" in error.message
    assert not peer.seen("/api/embed")


async def test_a_model_that_cannot_embed_says_so_itself(peer: OllamaPeer) -> None:
    async with serving(peer.url) as service:
        with pytest.raises(UnsupportedCapability, match="does not support embeddings"):
            await service.embed(ask("a"), parse_ref("ollama", "llama3.2"))
        with pytest.raises(ModelNotFound):
            await service.embed(ask("a"), parse_ref("ollama", "nobody"))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"embeddings": null}',
        b'{"embeddings": [[1, 2]]}',
        b'{"embeddings": [[1, 2], [1]]}',
        b'{"embeddings": [[], []]}',
        b'{"embeddings": [[1, "2"], [1, 2]]}',
        b'{"embeddings": [[1, null], [1, 2]]}',
        b'{"embeddings": [[1e300, 2], [1, 2]]}',
        b'{"embeddings": [[1, 2], [1, 2]',
        b"\xff",
    ],
)
async def test_an_answer_that_is_not_a_vector_for_each_text_is_rubbish(
    body: bytes, peer: OllamaPeer
) -> None:
    assert isinstance(await fail(peer, answer(200, body)), ProviderProtocolError)


async def test_an_answer_without_a_count_counts_nothing(peer: OllamaPeer) -> None:
    peer.script_route("/api/embed", answer(200, json.dumps({"embeddings": TWO}).encode()))
    async with serving(peer.url) as service:
        assert (await service.embed(ask("a", "b"), REF)).usage.prompt_tokens == 0


async def test_a_busy_server_is_overloaded(peer: OllamaPeer) -> None:
    busy = answer(503, b'{"error":"server busy, please try again."}')
    assert isinstance(await fail(peer, busy), Overloaded)


async def test_a_compressed_answer_is_refused(peer: OllamaPeer) -> None:
    script = answer(200, b"x", headers=[("Content-Encoding", "gzip")])
    assert isinstance(await fail(peer, script), ProviderProtocolError)


async def test_an_answer_longer_than_any_can_be_is_left(peer: OllamaPeer) -> None:
    script = chunks([b" " * 2**20] * 4)
    assert isinstance(await fail(peer, script, ask("a")), ProviderProtocolError)
    assert not peer.requests[-1].answered.is_set()


async def test_a_connection_that_breaks_in_the_answer_is_an_incomplete_one(
    peer: OllamaPeer,
) -> None:
    assert isinstance(await fail(peer, chunks([b'{"embeddings"', Do.CLOSE])), IncompleteStream)
    assert isinstance(await fail(peer, raw([Do.CLOSE])), ProviderUnavailable)


async def test_a_peer_that_drips_or_is_silent_is_left(peer: OllamaPeer) -> None:
    silent = chunks([b" ", asyncio.Event()])
    assert isinstance(await fail(peer, silent, idle_s=0.1), ProviderTimeout)
    assert isinstance(await fail(peer, raw([asyncio.Event()]), first_byte_s=0.1), ProviderTimeout)


async def test_who_leaves_closes_the_connection(peer: OllamaPeer) -> None:
    peer.script_route("/api/embed", chunks([b" ", asyncio.Event()]))

    async def embed(service: OllamaService) -> None:
        await service.embed(ask("a"), REF)

    async with serving(peer.url) as service, anyio.create_task_group() as tasks:
        tasks.start_soon(embed, service)
        seen = await peer.request(0, "/api/embed")
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await seen.until_closed()
