"""The GraphQL face: types, queries and the view. Translates between GraphQL and the services."""

from starlette.types import ASGIApp

from gateway.services.gateway import Gateway
from schema.page import load_page
from schema.query import build_schema
from schema.view import GraphQLView


def create_graphql(gateway: Gateway, *, ide: bool) -> ASGIApp:
    """Return the GraphQL endpoint over `gateway`; with `ide`, browsers see GraphiQL there."""
    return GraphQLView(build_schema(), gateway, load_page() if ide else None)


__all__ = ["create_graphql"]
