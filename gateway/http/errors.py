"""Renders problems in the form of each face. What an error means is for `gateway.problems`."""

import logging
import math
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from gateway import telemetry
from gateway.core.errors import GatewayError
from gateway.http.encoding import encode_json
from gateway.problems import Problem, describe

logger = logging.getLogger(__name__)

_HTTP_CODES = {
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    415: "unsupported_media_type",
}


class JsonReply(Response):
    """A body that is JSON already. Its headers are known, so none of them is looked for."""

    def init_headers(self, headers: Mapping[str, str] | None = None) -> None:
        self.raw_headers = [
            (b"content-length", b"%d" % len(self.body)),
            (b"content-type", b"application/json"),
        ]
        if headers:
            self.raw_headers[:0] = [
                (name.lower().encode("latin-1"), value.encode("latin-1"))
                for name, value in headers.items()
            ]


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return JsonReply(encode_json(value), status, headers)


def native_error(problem: Problem) -> dict[str, Any]:
    """Return the error object of the native face; also the data of a `failed` event."""
    return {
        "code": problem.code,
        "message": problem.message,
        "hint": problem.hint,
        "retryable": problem.retryable,
        "request_id": telemetry.request_id.get(),
    }


def openai_error(problem: Problem) -> dict[str, Any]:
    """Return the error object of the OpenAI face, which has no hint: the message carries it."""
    message = f"{problem.message} {problem.hint}" if problem.hint else problem.message
    return {
        "message": message,
        "type": _openai_type(problem.status),
        "param": problem.param,
        "code": problem.code,
    }


def _openai_type(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"


def graphql_error(problem: Problem) -> dict[str, Any]:
    """Return the error object of GraphQL for what never reached the schema."""
    extensions = {"code": problem.code, "hint": problem.hint, "retryable": problem.retryable}
    return {"message": problem.message, "extensions": extensions}


def error_response(path: str, problem: Problem, headers: dict[str, str] | None = None) -> Response:
    """Return the reply to a request for `path` that ends with `problem`."""
    headers = dict(headers or {})
    if problem.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(problem.retry_after_s)))
    if problem.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="gateway"'
    if path == "/graphql":
        return json_response({"errors": [graphql_error(problem)]}, problem.status, headers)
    if not path.startswith("/v1/"):
        return json_response({"error": native_error(problem)}, problem.status, headers)
    # openai-python and openai-node retry every 5xx unless told whether it makes sense.
    headers["X-Should-Retry"] = "true" if problem.retryable else "false"
    return json_response({"error": openai_error(problem)}, problem.status, headers)


def refuse(path: str, error: Exception) -> Response:
    """Return the reply to a request for `path` that failed; what is a defect is logged."""
    problem = describe(error)
    if not isinstance(error, GatewayError):
        logger.error("POST %r failed", path, exc_info=error)
    elif problem.status >= 500:
        # The message may cite the request: who has its text logs it as far as it does not.
        logger.warning("%r: %s", path, problem.code)
    return error_response(path, problem)


async def render_gateway_error(request: Request, error: Exception) -> Response:
    return refuse(request.scope["path"], error)


async def render_http_error(request: Request, error: Exception) -> Response:
    """Render what the routing itself refuses: unknown paths, methods and media types."""
    assert isinstance(error, HTTPException)
    path = request.scope["path"]
    headers = dict(error.headers or {})
    return error_response(path, _describe_http(error, request.method, path, headers), headers)


def _describe_http(
    error: HTTPException, method: str, path: str, headers: dict[str, str]
) -> Problem:
    message, hint = error.detail, None
    if error.status_code == 404:
        message, hint = f"There is nothing at {path!r}.", "GET / names the addresses."
    elif error.status_code == 405:
        headers["Allow"] = ", ".join(sorted(headers.get("Allow", "").split(", ")))
        message, hint = f"{method} is not allowed at {path!r}.", f"Allowed: {headers['Allow']}."
    elif error.status_code == 415:
        hint = "With curl, add: -H 'content-type: application/json'."
    code = _HTTP_CODES.get(error.status_code, "invalid_request")
    return Problem(code, error.status_code, message, hint, retryable=False)


EXCEPTION_HANDLERS = {GatewayError: render_gateway_error, HTTPException: render_http_error}
