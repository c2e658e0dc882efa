"""The Hub and its token over GraphQL."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.integration.hub_peer.files import HubFile
from tests.integration.hub_peer.server import HubPeer
from tests.integration.schema.graphql_server import GraphQLServer

CANARY = "hf_canary0123456789"


@pytest.fixture
async def peer() -> AsyncIterator[HubPeer]:
    async with HubPeer() as peer:
        for number in range(3):
            peer.files.add(f"org/m{number}", HubFile("x.gguf", bytes(10)), downloads=number)
        yield peer


@pytest.fixture
async def url(peer: HubPeer) -> AsyncIterator[str]:
    server = GraphQLServer({}, settings={"hub_endpoint": peer.url, "hub_recommended": ("a/b",)})
    async with server.serving() as url:
        yield url


async def ask(url: str, document: str, /, **variables: Any) -> Any:
    async with httpx.AsyncClient(trust_env=False, verify=False, timeout=20) as client:
        body = {"query": document, "variables": variables}
        return (await client.post(f"{url}/graphql", json=body)).json()


async def test_models_are_searched(url: str) -> None:
    answer = await ask(
        url,
        """query Find($query: HubQueryInput) {
          hubModels(query: $query) { models { id downloads } freshness { cached stale { code } } }
          hubRecommended
        }""",
        query={"author": "org", "limit": 2, "sort": "DOWNLOADS"},
    )
    assert answer["data"] == {
        "hubModels": {
            "models": [{"id": "org/m2", "downloads": 2}, {"id": "org/m1", "downloads": 1}],
            "freshness": {"cached": False, "stale": None},
        },
        "hubRecommended": ["a/b"],
    }


async def test_a_model_is_told_whole_and_a_missing_one_costs_only_its_field(url: str) -> None:
    answer = await ask(
        url,
        """{
          there: hubModel(name: "org/m1") {
            model { id gated createdAt } files { path sizeBytes } sizeBytes
            fit { fits needBytes basis reason }
          }
          missing: hubModel(name: "org/none") { sizeBytes }
        }""",
    )
    assert answer["data"]["there"] == {
        "model": {"id": "org/m1", "gated": None, "createdAt": None},
        "files": [{"path": "x.gguf", "sizeBytes": 10}],
        "sizeBytes": 10,
        "fit": {"fits": True, "needBytes": 10, "basis": "sizes", "reason": None},
    }
    assert answer["data"]["missing"] is None
    [error] = answer["errors"]
    assert (error["path"], error["extensions"]["code"]) == (["missing"], "repository_not_found")


async def test_a_token_is_set_and_forgotten(url: str, peer: HubPeer) -> None:
    peer.tokens[CANARY] = "alice"
    change = "mutation Set($token: String!) { setHfToken(token: $token) { source valid } }"
    said = [
        await ask(url, change, token="hf_wrong"),
        await ask(url, change, token=CANARY),
        await ask(url, "{ hfToken(validate: true) { source valid account { name scopes } } }"),
        await ask(url, "mutation { deleteHfToken { source valid updatedAt } }"),
    ]
    assert said[0]["errors"][0]["extensions"]["code"] == "hub_token_rejected"
    assert said[1]["data"]["setHfToken"] == {"source": "STORED", "valid": True}
    assert said[2]["data"]["hfToken"] == {
        "source": "STORED",
        "valid": True,
        "account": {"name": "alice", "scopes": []},
    }
    assert said[3]["data"]["deleteHfToken"] == {"source": "NONE", "valid": None, "updatedAt": None}
    assert CANARY not in repr(said)
