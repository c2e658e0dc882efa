"""Real servers and real clients for the GraphQL tests."""

from collections.abc import AsyncIterator

import httpx
import pytest
from gql import Client
from gql.transport.aiohttp import AIOHTTPTransport

from tests.integration.clients import node
from tests.integration.schema.graphql_server import GraphQLServer, make_server


@pytest.fixture
def graphql_server() -> GraphQLServer:
    """A server of two providers, not started: a test may change it before."""
    return make_server()


@pytest.fixture
async def graphql_url(graphql_server: GraphQLServer) -> AsyncIterator[str]:
    """The endpoint of `graphql_server`, served."""
    async with graphql_server.serving() as url:
        yield f"{url}/graphql"


@pytest.fixture
def graphql_client(graphql_url: str) -> Client:
    """gql, the client that Python programs use."""
    return Client(transport=AIOHTTPTransport(url=graphql_url), fetch_schema_from_transport=True)


@pytest.fixture
async def http(graphql_url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A plain HTTP client of the server."""
    base_url = graphql_url.removesuffix("/graphql")
    async with httpx.AsyncClient(base_url=base_url, trust_env=False) as client:
        yield client


@pytest.fixture(scope="session")
def node_modules() -> None:
    """The npm packages of the conformance clients, installed once."""
    node.install()
