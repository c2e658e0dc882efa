"""What `generate` may be given: the same request as the native face makes of the same body."""

import base64
from typing import Any

import anyio
import httpx
import pytest
from msgspec.structs import replace

from tests.integration.schema.graphql_server import GraphQLServer
from tests.integration.schema.test_graphql_sse import streaming
from tests.scripted_provider import ScriptedProvider, answer
from tests.tiny_vlms import draw, encode

GENERATE = """subscription($input: GenerateInput!) {
  generate(input: $input) { ... on FinishedEvent { end } }
}"""
MODEL = "scripted/echo"
IMAGE = base64.b64encode(encode(draw((8, 8), seed=1), "PNG")).decode()
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
HELLO = {"role": "user", "content": "hello"}

BODIES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"prompt": "hello"}, {"prompt": "hello"}),
    ({"prompt": "look", "images": [IMAGE]}, {"prompt": "look", "images": [IMAGE]}),
    (
        {
            "messages": [
                {"role": "SYSTEM", "content": "be short"},
                {"role": "USER", "content": "what is this", "images": [IMAGE, IMAGE]},
                {
                    "role": "ASSISTANT",
                    "reasoning": "hm",
                    "toolCalls": [{"id": "c1", "name": "look", "arguments": '{"at":1}'}],
                },
                {"role": "TOOL", "content": "a cat", "toolCallId": "c1", "toolName": "look"},
            ],
            "tools": [{"name": "look", "description": "sees", "parameters": SCHEMA}],
            "toolChoice": "look",
            "parallelToolCalls": False,
            "thinkLevel": "HIGH",
            "keepAliveSeconds": 60,
            "continueOnFailure": True,
            "truncate": False,
            "options": {"temperature": 0.5, "maxTokens": 9, "stop": ["a", "b"], "seed": 7},
        },
        {
            "messages": [
                {"role": "system", "content": "be short"},
                {"role": "user", "content": "what is this", "images": [IMAGE, IMAGE]},
                {
                    "role": "assistant",
                    "reasoning": "hm",
                    "tool_calls": [
                        {"id": "c1", "function": {"name": "look", "arguments": '{"at":1}'}}
                    ],
                },
                {"role": "tool", "content": "a cat", "tool_call_id": "c1", "tool_name": "look"},
            ],
            "tools": [{"function": {"name": "look", "description": "sees", "parameters": SCHEMA}}],
            "tool_choice": {"function": {"name": "look"}},
            "parallel_tool_calls": False,
            "think": "high",
            "keep_alive": 60,
            "continue_on_failure": True,
            "truncate": False,
            "options": {"temperature": 0.5, "max_tokens": 9, "stop": ["a", "b"], "seed": 7},
        },
    ),
    (
        {
            "messages": [{"role": "USER", "content": "hello"}],
            "tools": [{"name": "look"}],
            "toolChoice": "required",
            "think": False,
        },
        {
            "messages": [HELLO],
            "tools": [{"function": {"name": "look"}}],
            "tool_choice": "required",
            "think": False,
        },
    ),
    (
        {"prompt": "hello", "responseFormat": {"type": "JSON_SCHEMA", "schema": SCHEMA}},
        {"prompt": "hello", "response_format": {"type": "json_schema", "schema": SCHEMA}},
    ),
    (
        {"prompt": "hello", "responseFormat": {"type": "JSON_OBJECT"}},
        {"prompt": "hello", "response_format": {"type": "json_object"}},
    ),
]


@pytest.fixture
def provider() -> ScriptedProvider:
    return ScriptedProvider(answer("hi"))


@pytest.fixture
def graphql_server(provider: ScriptedProvider) -> GraphQLServer:
    return GraphQLServer({"scripted": provider})  # type: ignore[dict-item]


async def generate(http: httpx.AsyncClient, given: dict[str, Any]) -> Any:
    """Return the last reply to a `generate`."""
    with anyio.fail_after(10):
        async with streaming(http, GENERATE, variables={"input": given}) as events:
            *_, last, _ = [data async for _, data in events]
    return last


@pytest.mark.parametrize(("given", "native"), BODIES)
async def test_a_body_means_the_same_by_graphql_and_by_the_native_face(
    http: httpx.AsyncClient,
    provider: ScriptedProvider,
    given: dict[str, Any],
    native: dict[str, Any],
) -> None:
    assert (await generate(http, {"model": MODEL, **given}))["data"]["generate"]["end"] == "STOP"
    reply = await http.post("/api/v1/generate", json={"model": MODEL, **native})
    assert reply.status_code == 200
    mine, theirs = provider.requests
    # One is told as it comes, the other whole.
    assert not mine.is_whole and theirs.is_whole
    assert replace(mine, id="") == replace(theirs, id="", is_whole=False)


@pytest.mark.parametrize(
    ("given", "code", "words"),
    [
        ({}, "invalid_request", "either 'messages' or 'prompt'"),
        ({"prompt": "a", "messages": []}, "invalid_request", "either 'messages' or 'prompt'"),
        ({"messages": []}, "invalid_request", "'messages' is empty"),
        ({"prompt": ""}, "invalid_request", "'prompt' is empty"),
        ({"messages": [{"role": "USER"}]}, "invalid_request", "messages[0].content"),
        ({"prompt": "a", "images": ["*"]}, "invalid_request", "not valid base64"),
        ({"prompt": "a", "images": ["aGk="]}, "invalid_request", "image"),
        ({"prompt": "a", "toolChoice": "nobody"}, "invalid_request", "'nobody'"),
        ({"prompt": "a\u0000"}, "invalid_text", "NUL"),
        ({"prompt": "a", "options": {"temperature": 3}}, "invalid_request", "temperature"),
        (
            {"prompt": "a", "responseFormat": {"type": "JSON_SCHEMA"}},
            "invalid_request",
            "has no schema",
        ),
        (
            {"prompt": "a", "tools": [{"name": "x", "parameters": [1]}]},
            "invalid_request",
            "tools[0].function.parameters",
        ),
    ],
)
async def test_what_is_wrong_in_it_is_said(
    http: httpx.AsyncClient, given: dict[str, Any], code: str, words: str
) -> None:
    [error] = (await generate(http, {"model": MODEL, **given}))["errors"]
    assert error["extensions"]["code"] == code
    assert words in error["message"]
