"""The executable schema: its roots, and what is done with every document and every error."""

import strawberry
from graphql import GraphQLError
from strawberry.schema.config import StrawberryConfig
from strawberry.types import ExecutionContext

from schema.checks import DocumentChecks
from schema.errors import log_defects
from schema.mutation import Mutation
from schema.query import Query
from schema.streams import EVENT_TYPES
from schema.subscription import Subscription
from schema.types import LONG, Long


class GatewaySchema(strawberry.Schema):
    """Strawberry's schema with the gateway's own log of what went wrong."""

    def process_errors(
        self, errors: list[GraphQLError], execution_context: ExecutionContext | None = None
    ) -> None:
        log_defects(errors)


def build_schema() -> GatewaySchema:
    """Return the executable schema; it needs no services before it is asked something."""
    return GatewaySchema(
        query=Query,
        mutation=Mutation,
        subscription=Subscription,
        types=EVENT_TYPES,
        extensions=[DocumentChecks],
        config=StrawberryConfig(scalar_map={Long: LONG}, batching_config=None),
    )
