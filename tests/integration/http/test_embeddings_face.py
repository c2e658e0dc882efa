"""Both forms of embeddings over a scripted provider: bodies, replies, limits, ends."""

import base64
import socket
import struct
from typing import Any

import anyio
import pytest

from gateway.core.embeddings import EmbedRequest
from gateway.core.errors import ContextLengthExceeded, ProviderUnavailable
from gateway.core.models import Capability, ModelInfo
from gateway.core.names import ModelRef
from tests.integration.http.serving import Served, serving
from tests.scripted_provider import ScriptedProvider

OPENAI, NATIVE = "/v1/embeddings", "/api/v1/embed"
HELLO = {"model": "scripted/echo", "input": "hello"}


async def test_openai_s_form_has_a_place_for_each_vector_and_the_usage() -> None:
    async with serving(ScriptedProvider()) as served:
        reply = await served.client.post(OPENAI, json={**HELLO, "input": ["a", "abc"]})
    assert reply.headers["content-type"] == "application/json"
    assert reply.json() == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [0.0, 1.0]},
            {"object": "embedding", "index": 1, "embedding": [1.0, 3.0]},
        ],
        "model": "scripted/echo",
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    }


async def test_the_native_form_is_the_vectors() -> None:
    async with serving(ScriptedProvider()) as served:
        reply = await served.client.post(NATIVE, json={**HELLO, "input": ["a", "abc"]})
    assert reply.json() == {
        "model": "scripted/echo",
        "embeddings": [[0.0, 1.0], [1.0, 3.0]],
        "usage": {"prompt_tokens": 7},
    }


@pytest.mark.parametrize("path", [OPENAI, NATIVE])
async def test_base64_is_little_endian_float32(path: str) -> None:
    async with serving(ScriptedProvider()) as served:
        reply = await served.client.post(path, json={**HELLO, "encoding_format": "base64"})
    found = reply.json()
    text = found["embeddings"][0] if path == NATIVE else found["data"][0]["embedding"]
    assert struct.unpack("<2f", base64.b64decode(text, validate=True)) == (0.0, 5.0)


@pytest.mark.parametrize(
    ("given", "inputs"),
    [
        ("a", ("a",)),
        (["a", "b"], ("a", "b")),
        ([1, 2, 3], ((1, 2, 3),)),
        ([[1, 2], [3]], ((1, 2), (3,))),
        ([[1, 2], "b"], ((1, 2), "b")),
    ],
)
async def test_each_form_of_input_is_understood(given: object, inputs: object) -> None:
    provider = ScriptedProvider()
    async with serving(provider) as served:
        for path in (OPENAI, NATIVE):
            reply = await served.client.post(path, json={**HELLO, "input": given})
            assert reply.status_code == 200
    assert [request.inputs for request in provider.embed_requests] == [inputs] * 2


async def test_what_is_asked_for_reaches_the_provider() -> None:
    provider = ScriptedProvider()
    asked = {**HELLO, "dimensions": 2, "keep_alive": "1m", "truncate": True, "user": "me"}
    async with serving(provider) as served:
        for path in (OPENAI, NATIVE):
            headers = {"X-Request-Id": path}
            await served.client.post(path, json=asked, headers=headers)
    expected = [
        EmbedRequest(path, "scripted/echo", ("hello",), 2, path == NATIVE, 60.0)
        for path in (OPENAI, NATIVE)
    ]
    assert provider.embed_requests == expected


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": [[1], []]}, "input[1]"),
        ({"input": [1, "a"]}, "input"),
        ({"input": ["a", 1]}, "input"),
        ({"input": None}, "input"),
        ({"input": 7}, "input"),
        ({"input": [[-1]]}, None),
        ({"input": [[1.5]]}, None),
        ({"input": [[2**40]]}, None),
        ({"input": ["a"] * 4}, "input"),
        ({"dimensions": 0}, "dimensions"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"keep_alive": "soon"}, "keep_alive"),
    ],
)
@pytest.mark.parametrize("path", [OPENAI, NATIVE])
async def test_a_wrong_body_is_said_to_be_wrong(
    path: str, fields: dict[str, Any], param: str | None
) -> None:
    provider = ScriptedProvider()
    async with serving(provider, max_embed_inputs=3) as served:
        reply = await served.client.post(path, json={**HELLO, **fields})
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (400, "invalid_request")
    if path == OPENAI and param is not None:
        assert error["param"] == param
    assert not provider.embed_requests


async def test_one_input_of_many_token_ids_is_one_input() -> None:
    provider = ScriptedProvider()
    async with serving(provider, max_embed_inputs=1) as served:
        reply = await served.client.post(OPENAI, json={**HELLO, "input": [1] * 5000})
        many = await served.client.post(OPENAI, json={**HELLO, "input": [[1] * 300_000]})
    assert (reply.status_code, many.status_code) == (200, 200)
    assert [len(request.inputs[0]) for request in provider.embed_requests] == [5000, 300_000]


async def test_a_model_that_generates_is_not_asked_to_embed() -> None:
    provider = ScriptedProvider()
    provider.listed = [ModelInfo(ModelRef("scripted", "echo"), capabilities=(Capability.CHAT,))]
    async with serving(provider) as served:
        reply = await served.client.post(OPENAI, json=HELLO)
        unknown = await served.client.post(OPENAI, json={**HELLO, "model": "nobody"})
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "unsupported_capability"
    assert unknown.json()["error"]["code"] == "model_not_found"
    assert not provider.embed_requests


@pytest.mark.parametrize(
    ("error", "status", "retried"),
    [
        (ContextLengthExceeded("too long", param="input"), 400, "false"),
        (ProviderUnavailable("scripted", "away"), 503, "true"),
    ],
)
async def test_an_error_has_its_status_in_both_forms(error: Any, status: int, retried: str) -> None:
    provider = ScriptedProvider()
    provider.embed_error = error
    async with serving(provider) as served:
        openai = await served.client.post(OPENAI, json=HELLO)
        native = await served.client.post(NATIVE, json=HELLO)
    assert openai.status_code == native.status_code == status
    assert openai.json()["error"]["code"] == native.json()["error"]["code"] == error.code
    assert openai.headers["x-should-retry"] == retried


@pytest.mark.parametrize("path", [OPENAI, NATIVE])
async def test_leaving_ends_the_work(path: str) -> None:
    provider = ScriptedProvider()
    provider.embed_gate = anyio.Event()
    async with serving(provider) as served:
        await _leave_when_opened(served, provider, path)
        await provider.closed.wait()
        provider.embed_gate.set()
        await served.client.post(path, json=HELLO)
    assert len(provider.embed_requests) == 2


async def _leave_when_opened(served: Served, provider: ScriptedProvider, path: str) -> None:
    """Send the request, wait until the provider has it, then reset the connection."""
    request = served.client.build_request("POST", path, json=HELLO)
    size = len(request.content)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n"
    async with await anyio.connect_tcp("127.0.0.1", served.port) as stream:
        await stream.send(head.encode() + request.content)
        await provider.opened.wait()
        raw = stream.extra(anyio.abc.SocketAttribute.raw_socket)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def test_too_many_at_once_and_a_drain_are_503_with_a_time_to_come_back() -> None:
    provider = ScriptedProvider()
    provider.embed_gate = anyio.Event()
    codes: list[str] = []

    async with serving(provider, max_embeds=1) as served, anyio.create_task_group() as tasks:

        async def ask() -> None:
            reply = await served.client.post(NATIVE, json=HELLO)
            assert reply.status_code == 503 and int(reply.headers["retry-after"]) > 0
            codes.append(reply.json()["error"]["code"])

        tasks.start_soon(ask)
        await provider.opened.wait()
        await ask()
        await served.gateway.drain(0)
        await ask()
    assert codes[0] == "overloaded"
    assert codes[1:] == ["shutting_down"] * 2
