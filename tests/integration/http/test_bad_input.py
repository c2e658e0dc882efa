"""Whatever is sent, the answer is a 4xx that helps, and the next request works."""

import json
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.integration.http.serving import Served, serving
from tests.integration.http.sse_reader import HELLO, NATIVE, named, parse_frames
from tests.scripted_provider import ScriptedProvider, answer

CHAT = "/v1/chat/completions"
GENERATE = "/api/v1/generate"
PATHS = [NATIVE, GENERATE, CHAT]


def _with(**fields: Any) -> bytes:
    return json.dumps({**HELLO, **fields}).encode()


def _saying(content: Any) -> bytes:
    return _with(messages=[{"role": "user", "content": content}])


def _deep(levels: int) -> bytes:
    return b'{"model": "scripted/echo", "x": ' + b"[" * levels + b"]" * levels + b"}"


def _tool(parameters: bytes) -> bytes:
    tool = b'{"function": {"name": "f", "parameters": {"x": ' + parameters + b"}}}"
    return _with(tools=[])[:-1].replace(b'"tools": []', b'"tools": [' + tool + b"]") + b"}"


def _image(url: str) -> bytes:
    return _saying([{"type": "image_url", "image_url": {"url": url}}])


CORPUS: dict[str, tuple[bytes, int, str]] = {
    "empty body": (b"", 400, "empty"),
    "white space": (b" \n", 400, "empty"),
    "broken JSON": (b'{"model": ', 400, "not JSON"),
    "two values": (_with() + b" {}", 400, "not JSON"),
    "an array": (b"[]", 400, "expected `object`, got `array`"),
    "a number": (b"12", 400, "expected `object`, got `int`"),
    "null": (b"null", 400, "expected `object`, got `null`"),
    "byte order mark": (b"\xef\xbb\xbf" + _with(), 400, "byte order mark"),
    "UTF-16": (json.dumps(HELLO).encode("utf-16"), 400, "not JSON"),
    "not UTF-8": (_saying("x").replace(b'"x"', b'"\xff"'), 400, "not UTF-8"),
    "a raw surrogate": (_saying("x").replace(b'"x"', b'"\xed\xa0\x80"'), 400, "not UTF-8"),
    "a raw NUL": (_saying("x").replace(b'"x"', b'"a\x00b"'), 400, "not JSON"),
    "NUL": (_saying("a\x00b"), 422, "messages[0].content"),
    "NUL in the model": (_with(model="a\x00b"), 422, "'model'"),
    "NUL in a key": (_tool(b'{"a\\u0000": 1}'), 422, "NUL"),
    "lone surrogate": (_saying("a\ud800b"), 422, "messages[0].content"),
    "lone surrogate at the end": (_saying("a\ud800"), 422, "messages[0].content"),
    "low surrogate": (_saying("\udc00"), 422, "lone surrogate"),
    "lone surrogate, capitals": (_saying("x").replace(b'"x"', b'"\\uDBFF"'), 422, "surrogate"),
    "NaN": (_with(options={"temperature": float("nan")}), 400, "not JSON"),
    "Infinity": (_with(options={"temperature": float("inf")}), 400, "not JSON"),
    "a number out of range": (
        b'{"model": "echo", "messages": [], "options": {"temperature": 1e999}}',
        400,
        "number out of range",
    ),
    "a huge integer": (_tool(b"9" * 10**6), 400, "range"),
    "a large integer": (_tool(b"9" * 40), 400, "too large"),
    "100k brackets": (_deep(100_000), 400, "nested deeper"),
    "900 brackets": (_tool(b"[" * 900 + b"]" * 900), 400, "nested deeper"),
    "no model": (b'{"messages": []}', 400, "`$.model`: it is missing"),
    "model of the wrong type": (_with(model=5), 400, "`$.model`: expected `str`, got `int`"),
    "an empty model": (_with(model=""), 400, "1 to 512"),
    "a model of 1 MB": (_with(model="m" * 2**20), 400, "1 to 512"),
    "an unknown model": (_with(model="nobody-has-it!"), 404, "no model 'nobody-has-it!'"),
    "empty messages": (_with(messages=[]), 400, "Send at least one message"),
    "messages of the wrong type": (_with(messages="hello"), 400, "`$.messages`"),
    "a wrong role": (
        _with(messages=[{"role": "boss", "content": ""}]),
        400,
        "`$.messages[0].role`",
    ),
    "a role of the wrong type": (_with(messages=[{"role": 5}]), 400, "`$.messages[0].role`"),
    "no content": (_with(messages=[{"role": "user"}]), 400, "`$.messages[0].content` is missing"),
    "an unknown part": (_saying([{"type": "audio"}]), 400, "`$.messages[0].content[0].type`"),
    "an image of broken base64": (_image("data:image/png;base64,*"), 400, "not valid base64"),
    "an image that is none": (_image("data:image/png;base64,aGVsbG8="), 400, "not a readable PNG"),
    "an image without base64": (_image("data:image/png,abc"), 400, "not in base64"),
    "a remote image": (_image("http://127.0.0.1/a.png"), 400, "remote images are off"),
    "a file image": (_image("file:///etc/passwd"), 400, "remote images are off"),
    "an Ollama image": (
        _with(messages=[{"role": "user", "content": "", "images": ["*"]}]),
        400,
        "messages[0].images[0]",
    ),
    "too hot": (_with(options={"temperature": 2.5}), 400, "from 0 to 2"),
    "no tokens": (_with(options={"max_tokens": 0}), 400, "from 1 to"),
    "top_p of zero": (_with(options={"top_p": 0}), 400, "above 0"),
    "too many stops": (_with(options={"stop": ["x"] * 17}), 400, "16 are allowed"),
    "an empty stop": (_with(options={"stop": ""}), 400, "empty string"),
    "a seed of 65 bits": (_with(options={"seed": 2**64}), 400, "too large"),
    "keep_alive": (_with(keep_alive="soon"), 400, "no duration"),
    "a tool choice": (_with(tool_choice="perhaps"), 400, "tool_choice"),
    "a tool that is not there": (_with(tool_choice={"function": {"name": "f"}}), 400, "not in"),
    "no schema": (_with(response_format={"type": "json_schema"}), 400, "no schema"),
}


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving(ScriptedProvider(answer("hi"))) as served:
        yield served


@pytest.mark.parametrize("path", PATHS)
async def test_bad_bodies_get_a_helpful_4xx(
    path: str, served: Served, subtests: pytest.Subtests
) -> None:
    for name, (body, status, sentence) in CORPUS.items():
        with subtests.test(name):
            if path == CHAT:
                body = body.replace(b'{"model"', b'{"stream": true, "model"', 1)
            reply = await served.client.post(path, content=body)
            assert reply.status_code == status, reply.text
            error = reply.json()["error"]
            assert sentence in f"{error['message']} {error.get('hint')}"
            assert error["message"].endswith((".", "?", "..."))
            assert reply.headers["x-request-id"]
            again = await served.client.post(path, json=HELLO)
            assert again.status_code == 200


async def test_a_prompt_is_checked_too(served: Served) -> None:
    for body, sentence in [
        ({"model": "scripted/echo"}, "either 'messages' or 'prompt'"),
        ({**HELLO, "prompt": "x"}, "either 'messages' or 'prompt'"),
        ({"model": "scripted/echo", "prompt": ""}, "'prompt' is empty"),
        ({"model": "scripted/echo", "prompt": "x", "images": ["*"]}, "`$.images[0]`"),
        ({**HELLO, "images": ["aGk="]}, "belong to no message"),
    ]:
        reply = await served.client.post(GENERATE, json=body)
        assert reply.status_code == 400
        assert sentence in reply.json()["error"]["message"]


async def test_duplicate_keys_and_unknown_fields_are_fine(served: Served) -> None:
    body = _with(unknown={"a": [1]}, detached=None)[:-1] + b', "model": "echo"}'
    for path in PATHS:
        assert (await served.client.post(path, content=body)).status_code == 200


async def test_any_content_type_but_a_form_is_read(served: Served) -> None:
    for media_type in ("application/json; charset=utf-8", "text/plain", "", "application/foo"):
        headers = {"Content-Type": media_type} if media_type else {}
        reply = await served.client.post(GENERATE, content=_with(), headers=headers)
        assert reply.status_code == 200
    for path in (GENERATE, CHAT):
        for body in ({"data": {"a": "b"}}, {"files": {"a": b"b"}}):
            reply = await served.client.post(path, **body)  # type: ignore[arg-type]
            assert reply.status_code == 415
            assert "application/json" in reply.json()["error"]["message"]
            assert reply.json()["error"]["code"] == "unsupported_media_type"


@pytest.mark.parametrize("path", PATHS)
async def test_100_mb_with_a_length_are_refused_unread(path: str) -> None:
    async with serving(ScriptedProvider(answer("hi")), max_body_bytes=2**20) as served:
        reply = await served.client.post(path, content=b" " * 100 * 2**20)
        assert reply.status_code == 413
        assert "1048576 bytes" in reply.json()["error"]["message"]
        assert (await served.client.post(path, json=HELLO)).status_code == 200


async def test_the_length_alone_is_enough_for_413(served: Served) -> None:
    async with await anyio.connect_tcp("127.0.0.1", served.port) as stream:
        await stream.send(
            b"POST /api/v1/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n"
            b"Expect: 100-continue\r\n\r\n"
        )
        head = await stream.receive()
    assert head.startswith(b"HTTP/1.1 413 ")


async def test_an_endless_chunked_body_is_cut_at_the_limit() -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 100 * 2**20:
            sent += 2**16
            yield b" " * 2**16

    async with serving(ScriptedProvider(answer("hi")), max_body_bytes=2**20) as served:
        reply = await served.client.post(GENERATE, content=endless())
        assert reply.status_code == 413
        assert (await served.client.post(GENERATE, json=HELLO)).status_code == 200


async def test_a_big_body_below_the_limit_is_read(served: Served) -> None:
    reply = await served.client.post(GENERATE, content=_saying("x" * 3 * 2**20))
    assert reply.status_code == 200
    reply = await served.client.post(GENERATE, content=_saying("\x00" + "x" * 3 * 2**20))
    assert reply.status_code == 422


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(
    [
        "model", "messages", "prompt", "images", "options", "tools", "tool_choice", "stream",
        "response_format", "think", "keep_alive", "stop", "temperature", "n", "seed",
    ]
)  # fmt: skip
MESSAGES = st.lists(
    st.dictionaries(
        st.sampled_from(["role", "content", "images", "tool_calls", "tool_call_id", "name"]),
        st.sampled_from(["user", "assistant", "tool", "developer"]) | JSON,
        max_size=4,
    ),
    max_size=3,
)
BODIES = st.builds(
    lambda base, messages, fields: {**base, "messages": messages, **fields},
    st.sampled_from([{}, HELLO]),
    MESSAGES,
    st.dictionaries(KEYS, JSON, max_size=3),
) | st.builds(lambda fields: {**HELLO, **fields}, st.dictionaries(KEYS, JSON, max_size=2))


async def test_no_body_makes_the_gateway_fail(served: Served) -> None:
    """Hypothesis draws the bodies in one go: each is then sent to every path."""
    drawn: list[Any] = []

    @settings(
        max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(BODIES)
    def draw(body: Any) -> None:
        drawn.append(body)

    draw()
    statuses = set()
    for body in drawn:
        for path in (*PATHS, "/v1/completions"):
            reply = await served.client.post(path, content=json.dumps(body).encode())
            statuses.add(reply.status_code)
            assert reply.status_code < 500, (path, body, reply.text)
            if reply.status_code >= 400:
                assert reply.json()["error"]["message"]
            elif "event-stream" in reply.headers["content-type"] and path == NATIVE:
                assert named(parse_frames(reply.content))[-1] == "finished", body
    assert statuses >= {200, 400}
