"""availableModels, asked with the gql client over HTTP."""

import logging
import time
from typing import Any

import pytest
from gql import Client, gql
from gql.transport.aiohttp import AIOHTTPTransport
from gql.transport.exceptions import TransportQueryError

from gateway.core.errors import ProviderUnavailable
from gateway.core.models import ModelInfo
from gateway.core.names import ModelRef
from tests.integration.schema.graphql_server import GraphQLServer
from tests.integration.schema.listing_provider import ListingProvider

PLAIN = (
    "{ availableModels { models { id provider name state sizeBytes capabilities "
    "batched metadata { key value } } providerErrors { provider code message } } }"
)
FILTERED = """
    query Listing($filter: ModelFilter, $first: Int! = 100, $after: String) {
      availableModels(filter: $filter, first: $first, after: $after) {
        models { id message contextLength }
        totalCount
        pageInfo { hasNextPage endCursor }
      }
    }
"""


async def ask(client: Client, text: str, **variables: Any) -> dict[str, Any]:
    request = gql(text)
    request.variable_values = variables
    async with client as session:
        answer: dict[str, Any] = await session.execute(request)
    return answer


async def list_ids(client: Client, **variables: Any) -> list[str]:
    page = (await ask(client, FILTERED, **variables))["availableModels"]
    return [model["id"] for model in page["models"]]


async def test_the_listing_tells_all_of_every_model(graphql_client: Client) -> None:
    answer = await ask(graphql_client, PLAIN)
    models = {model["id"]: model for model in answer["availableModels"]["models"]}
    assert list(models) == ["huggingface/smol", "ollama/llama3:8b", "ollama/llava:7b"]
    assert models["ollama/llama3:8b"] == {
        "id": "ollama/llama3:8b",
        "provider": "ollama",
        "name": "llama3:8b",
        "state": "LOADED",
        "sizeBytes": 4_661_224_676,
        "capabilities": ["CHAT", "TOOLS"],
        "batched": True,
        "metadata": [
            {"key": "family", "value": "llama"},
            {"key": "quantization", "value": "Q4_0"},
        ],
    }
    assert answer["availableModels"]["providerErrors"] == []


@pytest.mark.parametrize(
    ("wanted", "ids"),
    [
        ({"providers": ["huggingface"]}, ["huggingface/smol"]),
        ({"states": ["LOADED", "FAILED"]}, ["huggingface/smol", "ollama/llama3:8b"]),
        ({"capabilities": ["CHAT", "VISION"]}, ["ollama/llava:7b"]),
        ({"text": "q4_0"}, ["ollama/llama3:8b"]),
        ({"text": "LLAVA", "states": ["LOADED"]}, []),
        ({}, ["huggingface/smol", "ollama/llama3:8b", "ollama/llava:7b"]),
        (None, ["huggingface/smol", "ollama/llama3:8b", "ollama/llava:7b"]),
    ],
)
async def test_a_filter_keeps_what_matches_all_of_it(
    graphql_client: Client, wanted: dict[str, Any] | None, ids: list[str]
) -> None:
    assert await list_ids(graphql_client, filter=wanted) == ids


async def test_pages_follow_each_other_while_models_come_and_go(
    graphql_server: GraphQLServer, graphql_client: Client
) -> None:
    first = (await ask(graphql_client, FILTERED, first=2))["availableModels"]
    assert [model["id"] for model in first["models"]] == ["huggingface/smol", "ollama/llama3:8b"]
    assert first["totalCount"] == 3
    assert first["pageInfo"]["hasNextPage"] is True
    # The model that the cursor stands on goes, and another comes before it.
    ollama = graphql_server.providers["ollama"]
    ollama.listed = (ModelInfo(ModelRef("ollama", "aya:8b")), ollama.listed[0])
    after = first["pageInfo"]["endCursor"]
    last = (await ask(graphql_client, FILTERED, first=2, after=after))["availableModels"]
    assert [model["id"] for model in last["models"]] == ["ollama/llava:7b"]
    assert last["pageInfo"]["hasNextPage"] is False


async def test_an_empty_page_has_no_cursor(graphql_client: Client) -> None:
    page = (await ask(graphql_client, FILTERED, first=0))["availableModels"]
    assert page["models"] == []
    assert page["totalCount"] == 3
    assert page["pageInfo"] == {"hasNextPage": True, "endCursor": None}


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"first": 501}, "'first' must be from 0 to 500."),
        ({"first": -1}, "'first' must be from 0 to 500."),
        ({"after": "not a cursor"}, "'after' is not a cursor."),
        ({"after": "/w=="}, "'after' is not a cursor."),
        ({"after": "_w=="}, "'after' is not a cursor."),
    ],
)
async def test_a_page_that_cannot_be_is_refused(
    graphql_client: Client, variables: dict[str, Any], message: str
) -> None:
    with pytest.raises(TransportQueryError) as caught:
        await ask(graphql_client, FILTERED, **variables)
    assert caught.value.errors is not None
    [error] = caught.value.errors
    assert error["message"] == message
    assert error["extensions"]["code"] == "invalid_request"
    assert error["path"] == ["availableModels"]


async def test_a_provider_that_hangs_or_fails_costs_only_its_own_models(
    graphql_server: GraphQLServer, graphql_client: Client
) -> None:
    graphql_server.providers["ollama"].hangs = True
    failing = graphql_server.providers["huggingface"]
    failing.error = ProviderUnavailable("huggingface", "The disk is gone.")
    await ask(graphql_client, "{ version }")
    began = time.monotonic()
    page = (await ask(graphql_client, PLAIN))["availableModels"]
    assert time.monotonic() - began < 5.0
    assert page["models"] == []
    errors = {error["provider"]: error for error in page["providerErrors"]}
    assert errors["ollama"]["code"] == "provider_timeout"
    assert errors["huggingface"] == {
        "provider": "huggingface",
        "code": "provider_unavailable",
        "message": "The disk is gone.",
    }


async def test_a_defect_is_logged_and_tells_the_client_nothing(
    graphql_server: GraphQLServer, graphql_client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    broken = ModelInfo(ModelRef("ollama", "bad"), state="secret-detail")  # type: ignore[arg-type]
    graphql_server.providers["ollama"].listed = (broken,)
    with caplog.at_level(logging.ERROR), pytest.raises(TransportQueryError) as caught:
        await ask(graphql_client, PLAIN)
    assert caught.value.errors is not None
    [error] = caught.value.errors
    assert error["extensions"]["code"] == "internal"
    assert "secret-detail" not in str(caught.value.errors)
    [record] = [record for record in caplog.records if record.name == "schema.errors"]
    assert record.exc_info is not None
    assert "availableModels" in record.getMessage()


async def test_sizes_beyond_32_bits_are_numbers(graphql_client: Client) -> None:
    answer = await ask(graphql_client, "{ availableModels { models { sizeBytes } } }")
    sizes = [model["sizeBytes"] for model in answer["availableModels"]["models"]]
    assert sizes == [270_000_000, 4_661_224_676, 4_733_363_377]


async def test_a_provider_without_models_is_no_error() -> None:
    server = GraphQLServer({"ollama": ListingProvider("ollama")})
    async with server.serving() as url:
        page = await ask(Client(transport=AIOHTTPTransport(url=f"{url}/graphql")), PLAIN)
    assert page == {"availableModels": {"models": [], "providerErrors": []}}
