"""What is done with every document before it is executed, on Strawberry's hooks."""

from collections.abc import Iterator

from graphql import GraphQLError, OperationDefinitionNode, validate
from strawberry.extensions import SchemaExtension
from strawberry.types import ExecutionContext

from schema.access import find_forbidden
from schema.limits import LIMITS, require_cheap, require_short


class DocumentChecks(SchemaExtension):
    """Refuses documents that ask too much, and validates the others."""

    def on_parse(self) -> Iterator[None]:
        context = self.execution_context
        require_short(context.query or "")
        context.parse_options["max_tokens"] = LIMITS.tokens
        yield
        if context.graphql_document is not None:
            require_cheap(context.graphql_document)
            _require_choice(context)

    def on_validate(self) -> Iterator[None]:
        """Validate in Strawberry's stead, which would report up to 100 errors.

        Each error is paid for: its line is looked for, and names like the wrong one.
        """
        context = self.execution_context
        assert context.graphql_document is not None
        context.pre_execution_errors = validate(
            context.schema._schema,
            context.graphql_document,
            context.validation_rules,
            max_errors=LIMITS.errors,
        )
        if not context.pre_execution_errors:
            context.pre_execution_errors = find_forbidden(
                context.graphql_document, context._provided_operation_name, context.context.caller
            )
        yield


def _require_choice(context: ExecutionContext) -> None:
    """Raise GraphQLError for several operations and no name; Strawberry would take the first."""
    assert context.graphql_document is not None
    definitions = context.graphql_document.definitions
    operations = [d for d in definitions if isinstance(d, OperationDefinitionNode)]
    if len(operations) > 1 and context._provided_operation_name is None:
        raise GraphQLError("The document has several operations: name one in 'operationName'.")
