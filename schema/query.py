"""The root of every query.

A field that needs the database is nullable: a database that does not answer costs that field
only, never the models beside it.
"""

from typing import Annotated

import strawberry

import gateway
from schema.context import Info
from schema.models import ModelFilter, ModelPage, choose_page
from schema.providers import Provider
from schema.sessions import Session, require_first

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
