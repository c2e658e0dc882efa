"""The GraphQL face: types, operations and the view. Translates between GraphQL and the services."""

from gateway.services.gateway import Gateway
from gateway.settings import Settings
from schema.context import ReadBody
from schema.execution import Executor
from schema.page import load_page
from schema.root import build_schema
from schema.socket import SocketLimits, Sockets
from schema.view import GraphQLView


def create_graphql(gateway: Gateway, settings: Settings, read_body: ReadBody) -> GraphQLView:
    """Return the GraphQL endpoint over `gateway`; in development, browsers see GraphiQL there.

    `read_body` reads what is to be generated, as for the native face.
    """
    executor = Executor(build_schema(), gateway, read_body)
    limits = SocketLimits(
        sockets=settings.max_subscriptions,
        ping_interval_s=settings.ping_interval_s,
        send_timeout_s=settings.send_timeout_s,
    )
    page = load_page() if settings.environment == "development" else None
    return GraphQLView(executor, Sockets(executor, gateway, limits), page, settings)


__all__ = ["create_graphql"]
