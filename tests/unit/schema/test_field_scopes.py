"""Every field of the roots has a scope; documents cannot hide one from the look at them."""

from pathlib import Path

import pytest
from graphql import OperationType, build_schema, parse

import schema
from gateway.core.errors import Forbidden
from gateway.core.keys import Caller, KeyScope
from schema.access import FIELD_SCOPES, find_forbidden

SDL = (Path(schema.__file__).parent / "schema.graphql").read_text(encoding="utf-8")
INFER = Caller("a", frozenset({KeyScope.INFER}))


def forbidden(document: str, name: str | None = None, caller: Caller = INFER) -> list[str]:
    errors = find_forbidden(parse(document), name, caller)
    assert all(isinstance(error.original_error, Forbidden) for error in errors)
    return [error.message for error in errors]


def test_every_field_of_the_roots_is_classified_and_no_other() -> None:
    built = build_schema(SDL)
    for operation in OperationType:
        root = built.get_root_type(operation)
        assert root is not None
        assert set(FIELD_SCOPES[operation]) == set(root.fields)


@pytest.mark.parametrize(
    "document",
    [
        "{ sessions { id } }",
        "{ version sessions { id } }",
        "{ version: sessions { id } }",
        "{ ... on Query { ... { sessions { id } } } }",
        "{ ...A } fragment A on Query { ...B } fragment B on Query { sessions { id } }",
        "{ sessions @include(if: false) { id } }",
        'mutation { loadModel(input: {model: "a"}) { id } }',
        "{ nobodyKnows }",
    ],
)
def test_a_field_is_found_wherever_it_stands(document: str) -> None:
    assert len(forbidden(document)) == 1
    assert forbidden(document, caller=Caller("a", frozenset({KeyScope.ADMIN}))) == []


def test_what_the_key_may_ask_passes_and_introspection_does() -> None:
    assert forbidden("{ version availableModels { totalCount } __typename }") == []
    assert forbidden("subscription { modelStateChanged { snapshot } }") == []


def test_only_the_chosen_operation_counts() -> None:
    both = "query A { version } query B { sessions { id } }"
    assert forbidden(both, "A") == []
    assert len(forbidden(both, "B")) == 1
