"""schema.body: any bytes and any texts are a request or a Refusal, never another exception."""

import json
from collections.abc import AsyncIterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from schema.body import (
    MAX_BODY_BYTES,
    MAX_VALUES,
    Refusal,
    parse_body,
    parse_query_string,
    read_body,
)

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
names = st.sampled_from(["query", "variables", "operationName", "extensions", "more"])


@settings(deadline=None)
@given(st.binary() | st.dictionaries(names, values).map(lambda body: json.dumps(body).encode()))
@example(b"[" * 100_000)
@example(b'{"query":"a","extensions":' + b'{"a":' * 50_000)
def test_any_body_is_a_request_or_refused(body: bytes) -> None:
    try:
        request = parse_body(body)
    except Refusal as refusal:
        assert refusal.status in (400, 413)
    else:
        assert request.query
        assert request.variables is None or isinstance(request.variables, dict)


@settings(deadline=None)
@given(st.dictionaries(names, st.text() | values.map(json.dumps)))
@example({"query": "{a}", "variables": "\ud800"})
@example({"query": "{a}", "variables": "[" * 50_000})
def test_any_query_string_is_a_request_or_refused(parameters: dict[str, str]) -> None:
    try:
        request = parse_query_string(parameters)
    except Refusal as refusal:
        assert refusal.status in (400, 413)
    else:
        assert request.query == parameters["query"]


def test_a_request_is_read_whole() -> None:
    body = {"query": "{a}", "operationName": "A", "variables": {"b": [1]}, "extensions": {"c": 2}}
    for request in (
        parse_body(json.dumps(body).encode()),
        parse_query_string(
            {
                "query": "{a}",
                "operationName": "A",
                "variables": '{"b":[1]}',
                "extensions": '{"c":2}',
            }
        ),
    ):
        assert (request.query, request.operation_name) == ("{a}", "A")
        assert (request.variables, request.extensions) == ({"b": [1]}, {"c": 2})


@pytest.mark.parametrize("count", [MAX_VALUES, MAX_VALUES + 1])
def test_variables_may_hold_so_many_values(count: int) -> None:
    # The list itself is one of them.
    body = json.dumps({"query": "{a}", "variables": {"a": [1] * (count - 1)}}).encode()
    if count <= MAX_VALUES:
        assert parse_body(body).variables is not None
    else:
        with pytest.raises(Refusal):
            parse_body(body)


async def test_a_body_is_refused_before_its_rest_is_read() -> None:
    read = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 1
            yield b" " * 65536

    with pytest.raises(Refusal) as caught:
        await read_body(chunks())
    assert caught.value.status == 413
    assert read == MAX_BODY_BYTES // 65536 + 1


async def test_an_announced_body_is_refused_unread() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        raise AssertionError("it was read")
        yield b""

    with pytest.raises(Refusal):
        await read_body(chunks(), str(MAX_BODY_BYTES + 1))
