"""A GraphQL request out of a body or a query string: its shape and its size.

Whatever is wrong here is the sender's program, not its query, so the answer is a status of its
own (`Refusal`) in every media type.
"""

from collections.abc import AsyncIterable, Mapping
from typing import Any

import msgspec
from graphql import GraphQLError
from strawberry.http import GraphQLRequestData

from gateway.core.errors import InvalidRequest, PayloadTooLarge

MAX_BODY_BYTES = 2**20
MAX_VARIABLES_BYTES = 256 * 1024
MAX_VALUES = 5000
"""Values within the variables, however nested: each of them is checked against its type."""

_BOM = b"\xef\xbb\xbf"


class Refusal(Exception):
    """A request that is no GraphQL request; becomes an HTTP error."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = dict(headers or {})

    def as_error(self) -> GraphQLError:
        """Return it as the GraphQL error of the reply's body."""
        cause = (
            PayloadTooLarge(self.message, hint="Send less at once.")
            if self.status == 413
            else InvalidRequest(self.message)
        )
        return GraphQLError(self.message, original_error=cause)


class _Envelope(msgspec.Struct, rename="camel"):
    query: str | None = None
    operation_name: str | None = None
    variables: msgspec.Raw = msgspec.Raw(b"null")
    extensions: msgspec.Raw = msgspec.Raw(b"null")


async def read_body(chunks: AsyncIterable[bytes], announced: str | None = None) -> bytes:
    """Return the whole body; raise Refusal (413) as soon as it is longer than allowed.

    `announced` is the Content-Length: an honest sender is told before it has sent anything.
    """
    _require_small(int(announced) if announced and announced.isdecimal() else 0)
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        _require_small(len(body))
    return bytes(body)


def parse_body(body: bytes) -> GraphQLRequestData:
    """Return the request in a JSON body; raise Refusal (400) for any other shape."""
    try:
        envelope = msgspec.json.decode(body.removeprefix(_BOM), type=_Envelope)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, _describe(error)) from None
    return _build(envelope)


def parse_query_string(parameters: Mapping[str, str]) -> GraphQLRequestData:
    """Return the request in a URL, where variables and extensions are JSON texts."""
    return _build(
        _Envelope(
            query=parameters.get("query"),
            operation_name=parameters.get("operationName"),
            variables=_raw(parameters.get("variables")),
            extensions=_raw(parameters.get("extensions")),
        )
    )


def _build(envelope: _Envelope) -> GraphQLRequestData:
    if not envelope.query:
        raise Refusal(400, "There is no 'query' in the request.")
    variables = _parse_object("variables", envelope.variables)
    _require_few_values(variables)
    return GraphQLRequestData(
        query=envelope.query,
        operation_name=envelope.operation_name or None,
        variables=variables,
        extensions=_parse_object("extensions", envelope.extensions),
    )


def _parse_object(name: str, raw: msgspec.Raw) -> dict[str, Any] | None:
    if len(memoryview(raw)) > MAX_VARIABLES_BYTES:
        raise Refusal(413, f"'{name}' is larger than {MAX_VARIABLES_BYTES} bytes.")
    try:
        return msgspec.json.decode(raw, type=dict[str, Any] | None)
    except (ValueError, RecursionError):
        raise Refusal(400, f"'{name}' must be a JSON object or null.") from None


def _require_few_values(variables: dict[str, Any] | None) -> None:
    stack: list[Any] = [variables]
    seen = 0
    while stack:
        value = stack.pop()
        inner = value.values() if isinstance(value, dict) else value
        if isinstance(value, dict | list):
            seen += len(value)
            if seen > MAX_VALUES:
                raise Refusal(413, f"'variables' holds more than {MAX_VALUES} values.")
            stack.extend(inner)


def _require_small(size_bytes: int) -> None:
    if size_bytes > MAX_BODY_BYTES:
        raise Refusal(413, f"The body is larger than {MAX_BODY_BYTES} bytes.")


def _raw(text: str | None) -> msgspec.Raw:
    return msgspec.Raw(text.encode(errors="replace") if text else b"null")


def _describe(error: Exception) -> str:
    if isinstance(error, msgspec.ValidationError):
        return f"The body is no GraphQL request: {error}."
    return "The body is not JSON in UTF-8."
