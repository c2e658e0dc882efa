"""The root of every query, and the schema built from it.

A field that needs the database is nullable: a database that does not answer costs that field
only, never the models beside it.
"""

from typing import Annotated

import strawberry
from graphql import GraphQLError
from strawberry.schema.config import StrawberryConfig
from strawberry.types import ExecutionContext

import gateway
from schema.checks import DocumentChecks
from schema.context import Info
from schema.errors import log_defects
from schema.models import ModelFilter, ModelPage, choose_page
from schema.providers import Provider
from schema.sessions import Session, require_first
from schema.types import LONG, Long

_Filter = Annotated[ModelFilter | None, strawberry.argument(description="Which models to list.")]
_First = Annotated[int, strawberry.argument(description="The most models of a page; up to 500.")]
_After = Annotated[
    str | None, strawberry.argument(description="`pageInfo.endCursor` of the page before.")
]
_Newest = Annotated[int, strawberry.argument(description="How many, newest first; up to 200.")]


async def list_models(
    info: Info, filter: _Filter = None, first: _First = 100, after: _After = None
) -> ModelPage:
    listing = await info.context.gateway.catalog.listing()
    return choose_page(listing, filter, first, after)


async def list_providers(info: Info) -> list[Provider] | None:
    services = info.context.gateway
    statuses = await services.provider_states.all(services.node)
    return [Provider.of(status) for status in statuses]


async def list_sessions(info: Info, first: _Newest = 20) -> list[Session] | None:
    recent = await info.context.gateway.sessions.recent(require_first(first))
    return [Session.of(session) for session in recent]


def tell_version() -> str:
    return gateway.__version__


@strawberry.type(description="What can be asked of the gateway.")
class Query:
    available_models: ModelPage = strawberry.field(
        resolver=list_models,
        description="The models of every provider, and for each provider that cannot be listed "
        "the reason. Answers within a second, whatever the providers do.",
    )
    providers: list[Provider] | None = strawberry.field(
        resolver=list_providers,
        description="Every provider as it was when it was last looked at.",
    )
    sessions: list[Session] | None = strawberry.field(
        resolver=list_sessions,
        description="The newest streams, newest first; running ones too.",
    )
    version: str = strawberry.field(resolver=tell_version, description="The gateway's version.")


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
        extensions=[DocumentChecks],
        config=StrawberryConfig(scalar_map={Long: LONG}, batching_config=None),
    )
