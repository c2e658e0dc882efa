"""What OpenAI-compatible servers say when they fail, in every shape, and what it means."""

import json

import pytest

from gateway.core.errors import (
    ContextLengthExceeded,
    EngineFailed,
    GatewayError,
    ModelNotFound,
    Overloaded,
    PayloadTooLarge,
    ProviderProtocolError,
    ProviderRejected,
    ProviderTimeout,
    ProviderUnavailable,
    UnsupportedCapability,
)
from gateway.core.names import ModelRef
from gateway.providers.openai_fault_wire import Faults

REF = ModelRef("lab", "m")
KEY = "sk-very-secret"
FAULTS = Faults("lab", ["http://lab/v1"], KEY)
SHAPES = [
    {"error": {"message": "no such thing", "type": "invalid_request_error", "code": None}},
    {"object": "error", "message": "no such thing", "type": "BadRequestError", "code": 400},
    {"detail": "no such thing"},
    {"detail": {"error": "no such thing"}},
    {"error": "no such thing", "error_type": "validation"},
    {"error": json.dumps({"error": {"message": "no such thing"}})},
]


@pytest.mark.parametrize("body", [json.dumps(shape).encode() for shape in SHAPES])
def test_the_sentence_is_found_in_every_shape(body: bytes) -> None:
    assert FAULTS.said(body) == "no such thing"


def test_fastapis_list_names_the_fields() -> None:
    detail = [{"loc": ["body", "top_k"], "msg": "too big", "input": "x" * 1000}]
    body = json.dumps({"detail": detail}).encode()
    assert FAULTS.said(body) == "body.top_k: too big"


@pytest.mark.parametrize("body", [b"", b"\xff\xfe", b"[" * 50_000, b"3", b"null", b"{}", b'{"a'])
def test_any_body_can_be_shown(body: bytes) -> None:
    said = FAULTS.said(body)
    assert len(said) <= 300
    assert said.isprintable()


@pytest.mark.parametrize(
    "status, said, kind",
    [
        (400, "This model's maximum context length is 4096 tokens.", ContextLengthExceeded),
        (400, "The decoder prompt is longer than the maximum model length", ContextLengthExceeded),
        (400, "the request exceeds the available context size", ContextLengthExceeded),
        (400, "Input is longer than the model's context length", ContextLengthExceeded),
        (422, "Input validation error: `inputs` must have less than 4 tokens", None),
        (400, "Requested tokens (9) exceed context window of 8", ContextLengthExceeded),
        (404, "The model `m` does not exist.", ModelNotFound),
        (400, "The model `m` does not exist", ModelNotFound),
        (400, "The model does not support Embeddings API", UnsupportedCapability),
        (400, "m is not a multimodal model", UnsupportedCapability),
        (400, '"auto" tool choice requires --enable-auto-tool-choice', UnsupportedCapability),
        (400, "something novel", ProviderRejected),
        (422, "Unexpected fields in the request: {'min_p'}", ProviderRejected),
        (401, "Invalid API key", ProviderRejected),
        (403, "no", ProviderRejected),
        (404, "Not Found", ProviderProtocolError),
        (405, "Method Not Allowed", ProviderProtocolError),
        (404, "gone", ModelNotFound),
        (408, "", ProviderTimeout),
        (413, "", PayloadTooLarge),
        (429, "slow down", Overloaded),
        (500, "boom", EngineFailed),
        (501, "not here", UnsupportedCapability),
        (502, "<html>Bad gateway</html>", ProviderUnavailable),
        (503, "Loading model", Overloaded),
        (504, "", ProviderTimeout),
        (302, "", ProviderProtocolError),
        (204, "", ProviderProtocolError),
    ],
)
def test_statuses_and_texts(status: int, said: str, kind: type[GatewayError] | None) -> None:
    for body in (json.dumps({"error": {"message": said}}), json.dumps({"detail": said}), said):
        error = FAULTS.of_status(status, body.encode(), REF)
        assert type(error) is (kind or ContextLengthExceeded), body


def test_a_code_tells_as_much_as_a_sentence() -> None:
    long = {"error": {"message": "no", "code": "context_length_exceeded"}}
    spent = {"error": {"message": "no", "code": "insufficient_quota"}}
    assert isinstance(FAULTS.of_status(400, json.dumps(long).encode(), REF), ContextLengthExceeded)
    assert isinstance(FAULTS.of_status(429, json.dumps(spent).encode(), REF), ProviderRejected)


def test_what_the_caller_sent_is_no_reason() -> None:
    detail = [{"loc": ["body"], "msg": "bad", "input": "maximum context length"}]
    error = FAULTS.of_status(422, json.dumps({"detail": detail}).encode(), REF)
    assert isinstance(error, ProviderRejected)


@pytest.mark.parametrize("path", ["/embeddings", "/completions"])
def test_routes_that_a_server_may_lack(path: str) -> None:
    error = FAULTS.of_status(404, b'{"detail":"Not Found"}', REF, path=path)
    assert isinstance(error, UnsupportedCapability)


def test_capabilities_that_are_missing_name_the_field_that_asks_for_them() -> None:
    for said, param in (
        ("does not support tools", "tools"),
        ("does not support images", "messages"),
    ):
        assert FAULTS.of_status(400, said.encode(), REF).param == param


@pytest.mark.parametrize(
    "header, expected", [("7", 7.0), ("999999", 60.0), ("soon", 1.0), (None, 1.0)]
)
def test_busy_says_when_to_try_again(header: str | None, expected: float) -> None:
    for status in (429, 503):
        error = FAULTS.of_status(status, b"", REF, retry_after=header)
        assert error.retry_after_s == expected


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500, 503])
def test_a_key_that_a_server_repeats_is_not_shown(status: int) -> None:
    body = json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}"}}).encode()
    error = FAULTS.of_status(status, body, REF)
    assert KEY not in repr((error.message, error.hint, error.args))
    assert KEY not in FAULTS.of_event(body, REF).message
    assert KEY not in FAULTS.unreadable("sent rubbish", KEY.encode()).message
