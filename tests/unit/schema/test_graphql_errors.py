"""schema.errors: what a client may read of an error, and what only the log does."""

import logging

import pytest
from graphql import GraphQLError

from gateway.core.errors import NoRoom
from schema.errors import log_defects, render_error


def test_a_known_error_keeps_its_sentence_and_advice() -> None:
    inner = GraphQLError("hidden", original_error=NoRoom("Every model is in use."))
    rendered = render_error(GraphQLError("hidden", path=["a", 0], original_error=inner))
    assert rendered == {
        "message": "Every model is in use.",
        "path": ["a", 0],
        "extensions": {
            "code": "no_room",
            "hint": "Every loaded model is in use; try again.",
            "retryable": True,
        },
    }


def test_an_unknown_error_says_nothing_of_itself() -> None:
    rendered = render_error(GraphQLError("secret", original_error=ValueError("secret")))
    assert rendered["extensions"]["code"] == "internal"
    assert "secret" not in str(rendered)


def test_an_error_of_the_document_is_told_as_it_is() -> None:
    rendered = render_error(GraphQLError("Cannot query field 'x'."))
    assert rendered["message"] == "Cannot query field 'x'."
    assert rendered["extensions"]["code"] == "invalid_request"


def test_only_defects_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        log_defects(
            [
                GraphQLError("Cannot query field 'x'."),
                GraphQLError("full", original_error=NoRoom("full")),
                GraphQLError("oops", path=["a", "b"], original_error=ValueError("oops")),
            ]
        )
    [record] = caplog.records
    assert record.getMessage() == "GraphQL field a.b failed"
    assert record.exc_info is not None and isinstance(record.exc_info[1], ValueError)
