"""Operations, run through the schema, and their results in the shape that clients see."""

import json
from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing
from typing import Any, TypeAlias, cast

from graphql import GraphQLError, located_error
from strawberry.http import GraphQLRequestData
from strawberry.schema.exceptions import CannotGetOperationTypeError
from strawberry.types import ExecutionResult
from strawberry.types.graphql import OperationType

from gateway.core.keys import Caller
from gateway.services.gateway import Gateway
from schema.context import Context, ReadBody
from schema.errors import is_request_error, log_defects, render_error
from schema.root import GatewaySchema

Reply: TypeAlias = dict[str, Any]
"""A GraphQL response: `data` is left out when nothing was executed."""


class Executor:
    """Runs operations, for whatever protocol they came by."""

    def __init__(self, schema: GatewaySchema, gateway: Gateway, read_body: ReadBody) -> None:
        self._schema = schema
        self._gateway = gateway
        self._read_body = read_body

    async def answer(
        self, asked: GraphQLRequestData, allowed: Collection[OperationType], caller: Caller
    ) -> Reply:
        """Return the reply to a query or mutation of `caller`.

        Raises Strawberry's InvalidOperationTypeError for an operation that is not `allowed`.
        """
        arguments = self._arguments(asked, allowed, caller)
        try:
            result = await self._schema.execute(asked.query, **arguments)
        except CannotGetOperationTypeError as error:
            # No operation, or not the one that was named: the document's fault like any other.
            fault = GraphQLError(error.as_http_error_reason())
            result = ExecutionResult(data=None, errors=[fault])
        return _render(result)

    async def stream(
        self, asked: GraphQLRequestData, allowed: Collection[OperationType], caller: Caller
    ) -> AsyncGenerator[Reply, None]:
        """Yield the replies of any operation; one without `data` is the last."""
        try:
            arguments = self._arguments(asked, allowed, caller)
            results = await self._schema.stream(asked.query, **arguments)
            async with aclosing(results):
                async for result in results:
                    yield _render(cast(ExecutionResult, result))
        except Exception as error:
            # Unlike `execute`, Strawberry lets out what the checks of the document raise.
            fault = located_error(error)
            log_defects([fault])
            yield _render(ExecutionResult(data=None, errors=[fault]))

    def _arguments(
        self, asked: GraphQLRequestData, allowed: Collection[OperationType], caller: Caller
    ) -> dict[str, Any]:
        return {
            "variable_values": asked.variables,
            "context_value": Context(self._gateway, caller, self._read_body),
            "operation_name": asked.operation_name,
            "operation_extensions": asked.extensions,
            "allowed_operation_types": allowed,
        }


def encode_json(value: object) -> str:
    """Return `value` as JSON in one line, without any character beyond ASCII."""
    return json.dumps(value, separators=(",", ":"))


def _render(result: ExecutionResult) -> Reply:
    reply: Reply = {}
    if result.errors:
        reply["errors"] = [render_error(error) for error in result.errors]
    if result.data is not None or not all(map(is_request_error, result.errors or ())):
        reply["data"] = result.data
    return reply
