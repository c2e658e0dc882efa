"""Errors as GraphQL shows them: a sentence, and `extensions {code, hint, retryable}`.

Only a GatewayError and what the GraphQL library says of the document are shown; anything else is
a defect of ours, logged with its traceback and told as `internal`.
"""

import logging
from collections.abc import Iterable
from typing import Any

from graphql import GraphQLError
from strawberry.schema.exceptions import CannotGetOperationTypeError, InvalidOperationTypeError

from gateway import problems
from gateway.core.errors import GatewayError, InvalidRequest

logger = logging.getLogger(__name__)

_DOCUMENT_FAULTS = (CannotGetOperationTypeError, InvalidOperationTypeError)
"""Strawberry's own, without a message: that is in the GraphQLError around them."""


def render_error(error: GraphQLError) -> dict[str, Any]:
    """Return `error` as the reply shows it."""
    cause = _shown_cause(error)
    problem = problems.describe(cause)
    rendered: dict[str, Any] = {"message": problem.message}
    if error.locations:
        rendered["locations"] = [location.formatted for location in error.locations]
    if error.path is not None:
        rendered["path"] = error.path
    rendered["extensions"] = {
        "code": problem.code,
        "hint": problem.hint,
        "retryable": problem.retryable,
    }
    if isinstance(cause, GatewayError) and cause.decision_id is not None:
        rendered["extensions"]["decisionId"] = cause.decision_id
    return rendered


def render_cause(error: GatewayError) -> dict[str, Any]:
    """Return an error that belongs to no place in a document, as the reply shows it."""
    return render_error(GraphQLError(error.message, original_error=error))


def log_defects(errors: Iterable[GraphQLError]) -> None:
    """Log, with their tracebacks, the errors that the client is told nothing of."""
    for error in errors:
        cause = _root_cause(error)
        if not isinstance(cause, GraphQLError | GatewayError):
            logger.error("GraphQL field %s failed", _path_of(error), exc_info=cause)


def is_request_error(error: GraphQLError) -> bool:
    """Tell whether `error` is of the request as a whole; those of single fields have a path."""
    return error.path is None


def _shown_cause(error: GraphQLError) -> BaseException:
    cause = _root_cause(error)
    return InvalidRequest(cause.message) if isinstance(cause, GraphQLError) else cause


def _root_cause(error: GraphQLError) -> BaseException:
    cause: BaseException = error
    while isinstance(cause, GraphQLError) and cause.original_error is not None:
        if isinstance(cause.original_error, _DOCUMENT_FAULTS):
            break
        cause = cause.original_error
    return cause


def _path_of(error: GraphQLError) -> str:
    return ".".join(map(str, error.path or ["(request)"]))
