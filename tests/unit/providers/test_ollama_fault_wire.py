"""What Ollama's failures mean, status by status and text by text."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import (
    ContextLengthExceeded,
    GatewayError,
    IncompleteStream,
    ModelLoadFailed,
    ModelNotFound,
    PayloadTooLarge,
    ProviderError,
    ProviderProtocolError,
    ProviderTimeout,
    ProviderUnavailable,
    UnsupportedCapability,
)
from gateway.core.names import ModelRef
from gateway.providers.http1_wire import (
    ConnectionLost,
    ConnectTimedOut,
    MalformedReply,
    ReplyTimedOut,
    TransportError,
    Unreachable,
)
from gateway.providers.ollama_fault_wire import (
    describe_error_line,
    describe_status,
    describe_transport,
    read_error_text,
)
from gateway.providers.text_wire import MAX_TEXT, clean_text

REF = ModelRef("ollama", "llama3.2:latest")


def body(text: object) -> bytes:
    return json.dumps({"error": text}).encode()


@pytest.mark.parametrize(
    "raw, text",
    [
        (b'{"error":"plain"}', "plain"),
        (b"not json", "not json"),
        (b"", ""),
        (b'"quoted"', "quoted"),
        (body(json.dumps({"error": {"message": "inner", "code": 1}})), "inner"),
        (body({"message": "object"}), "object"),
        (b'{"message":"no error key"}', "no error key"),
        (b'{"other":1}', '{"other":1}'),
        (b"  <html>x</html>", "an HTML page"),
        (b"a\x00b\r\n\tc\x1b[0m", "a b c [0m"),
        (b"\xff", "\ufffd"),
    ],
)
def test_the_text_is_found_wherever_it_is(raw: bytes, text: str) -> None:
    """T8"""
    assert read_error_text(raw) == text


@given(st.text() | st.text(min_size=MAX_TEXT))
def test_cleaned_texts_are_short_and_on_one_line(text: str) -> None:
    cleaned = clean_text(text)
    assert len(cleaned) <= MAX_TEXT
    assert cleaned.isprintable()
    assert clean_text(cleaned) in (cleaned, "an HTML page")


@given(st.integers(100, 599).filter(lambda status: status != 200), st.binary(max_size=60))
def test_every_status_and_body_is_one_of_our_errors(status: int, raw: bytes) -> None:
    """T7"""
    for ref in (REF, None):
        error = describe_status(status, raw, ref)
        assert isinstance(error, GatewayError)
        assert error.message.endswith(".") or read_error_text(raw) in error.message


@pytest.mark.parametrize(
    "word, param",
    [
        ("tools", "tools"),
        ("thinking", "think"),
        ("vision", "messages"),
        ("insert", "suffix"),
        ("chat", "model"),
        ("generate", "model"),
    ],
)
def test_the_capability_that_lacks_is_named(word: str, param: str) -> None:
    """T7"""
    error = describe_status(400, body(f'"llama3.2" does not support {word}'), REF)
    assert isinstance(error, UnsupportedCapability)
    assert error.param == param
    assert word in error.message


def test_a_missing_model_is_named_as_it_is_listed() -> None:
    """T7"""
    error = describe_status(404, body("model 'x' not found"), REF)
    assert isinstance(error, ModelNotFound)
    assert error.name == "ollama/llama3.2:latest"


def test_an_unknown_route_is_no_missing_model() -> None:
    """T7"""
    assert isinstance(describe_status(404, b"404 page not found", REF), ProviderProtocolError)
    assert isinstance(describe_status(404, body("x"), None), ProviderProtocolError)


def test_a_proxys_size_limit_is_the_callers_matter() -> None:
    """T7"""
    assert isinstance(describe_status(413, b"<html>", REF), PayloadTooLarge)


@pytest.mark.parametrize("status, hint", [(401, "ollama signin"), (403, "localhost")])
def test_refused_access_says_what_to_do(status: int, hint: str) -> None:
    """T7"""
    error = describe_status(status, b"", REF)
    assert error.hint is not None and hint in error.hint


@pytest.mark.parametrize(
    "text, kind",
    [
        ("the input is longer than the context length", ContextLengthExceeded),
        ({"type": "exceed_context_size_error", "message": "too long"}, ContextLengthExceeded),
        ("llama-server process has terminated: killed", ModelLoadFailed),
        ("llama-server chat error: boom", ProviderError),
        ({"code": 7}, ProviderError),
        (7, ProviderError),
    ],
)
def test_error_lines(text: object, kind: type[GatewayError]) -> None:
    """T5"""
    assert type(describe_error_line(json.dumps(text).encode(), REF)) is kind


@pytest.mark.parametrize(
    "error, before, after",
    [
        (ConnectTimedOut(), ProviderTimeout, ProviderTimeout),
        (Unreachable(), ProviderUnavailable, ProviderUnavailable),
        (ReplyTimedOut(), ProviderTimeout, ProviderTimeout),
        (ConnectionLost(has_begun=False), ProviderUnavailable, IncompleteStream),
        (MalformedReply("x"), ProviderProtocolError, ProviderProtocolError),
    ],
)
def test_broken_connections(
    error: TransportError, before: type[GatewayError], after: type[GatewayError]
) -> None:
    """T6"""
    assert type(describe_transport(error, "http://x", started=False)) is before
    assert type(describe_transport(error, "http://x", started=True)) is after
