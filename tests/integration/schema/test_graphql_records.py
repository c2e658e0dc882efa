"""`providers`, `sessions` and `version`: what comes from the stores."""

from typing import Any

import httpx

import gateway
from gateway.core.errors import DatabaseUnavailable
from gateway.core.events import Timings, Usage
from gateway.core.models import Capability, ProviderStatus
from gateway.core.sessions import Session, SessionClosed, SessionOpened
from gateway.core.states import ProviderState, StreamEnd
from gateway.testing import MemoryProviderStore, MemorySessionStore
from tests.integration.schema.graphql_server import NODE, GraphQLServer

SESSIONS = """{ sessions(first: 2) { id requestId requestedModel provider model end openedAt
    closedAt usage { promptTokens completionTokens } timings { queueMs loadMs ttftMs totalMs }
    errorCode face servedBy switched } }"""


async def ask(http: httpx.AsyncClient, query: str) -> dict[str, Any]:
    answer = await http.post("/graphql", json={"query": query})
    reply: dict[str, Any] = answer.json()
    return reply


async def test_providers_are_told_as_the_database_knows_them(
    graphql_server: GraphQLServer, http: httpx.AsyncClient
) -> None:
    up = ProviderStatus(
        "huggingface",
        "huggingface",
        ProviderState.UP,
        checked_at=1_700_000_000.5,
        last_seen_at=1_700_000_000.5,
        capabilities=(Capability.CHAT, Capability.COMPLETION),
    )
    down = ProviderStatus(
        "ollama",
        "ollama",
        ProviderState.DOWN,
        checked_at=1_700_000_000.5,
        error_code="provider_unavailable",
        error_message="Nobody is there.",
    )
    elsewhere = ProviderStatus("openai", "openai", ProviderState.UP, checked_at=0.0)
    await graphql_server.provider_states.put(NODE, [up, down])
    await graphql_server.provider_states.put("another-node", [elsewhere])
    reply = await ask(
        http,
        """{ providers { name kind state checkedAt lastSeenAt errorCode errorMessage
            capabilities } }""",
    )
    assert reply["data"]["providers"] == [
        {
            "name": "huggingface",
            "kind": "huggingface",
            "state": "UP",
            "checkedAt": "2023-11-14T22:13:20.500000+00:00",
            "lastSeenAt": "2023-11-14T22:13:20.500000+00:00",
            "errorCode": None,
            "errorMessage": None,
            "capabilities": ["CHAT", "COMPLETION"],
        },
        {
            "name": "ollama",
            "kind": "ollama",
            "state": "DOWN",
            "checkedAt": "2023-11-14T22:13:20.500000+00:00",
            "lastSeenAt": None,
            "errorCode": "provider_unavailable",
            "errorMessage": "Nobody is there.",
            "capabilities": [],
        },
    ]


async def test_sessions_are_the_newest_first_and_running_ones_have_no_end(
    graphql_server: GraphQLServer, http: httpx.AsyncClient
) -> None:
    opened = [
        SessionOpened(f"s{i}", f"r{i}", NODE, "smol", opened_at=1_700_000_000.0 + i, face="openai")
        for i in range(3)
    ]
    closed = SessionClosed(
        "s1",
        provider="huggingface",
        model="smol",
        end=StreamEnd.TOOL_CALLS,
        closed_at=1_700_000_009.0,
        usage=Usage(prompt_tokens=7, completion_tokens=11),
        timings=Timings(queue_ms=1.5, load_ms=0.0, ttft_ms=20.25, total_ms=8000.0),
        served_by=("ollama/smol", "huggingface/smol"),
    )
    await graphql_server.sessions.write(opened, [closed])
    reply = await ask(http, SESSIONS)
    running, ended = reply["data"]["sessions"]
    assert (running["id"], running["end"], running["usage"]) == ("s2", None, None)
    assert ended == {
        "id": "s1",
        "requestId": "r1",
        "requestedModel": "smol",
        "provider": "huggingface",
        "model": "smol",
        "end": "TOOL_CALLS",
        "openedAt": "2023-11-14T22:13:21+00:00",
        "closedAt": "2023-11-14T22:13:29+00:00",
        "usage": {"promptTokens": 7, "completionTokens": 11},
        "timings": {"queueMs": 1.5, "loadMs": 0.0, "ttftMs": 20.25, "totalMs": 8000.0},
        "errorCode": None,
        "face": "openai",
        "servedBy": ["ollama/smol", "huggingface/smol"],
        "switched": 1,
    }
    assert (running["servedBy"], running["switched"]) == ([], 0)


async def test_sessions_out_of_range_are_refused(http: httpx.AsyncClient) -> None:
    for first in (-1, 201):
        reply = await ask(http, f"{{ sessions(first: {first}) {{ id }} }}")
        assert reply["errors"][0]["extensions"]["code"] == "invalid_request"


class _AwaySessionStore(MemorySessionStore):
    async def recent(self, limit: int) -> list[Session]:
        raise DatabaseUnavailable("The database is away.")


async def test_a_database_that_is_away_costs_only_its_own_fields(
    graphql_server: GraphQLServer,
) -> None:
    graphql_server.sessions = _AwaySessionStore()
    async with (
        graphql_server.serving() as url,
        httpx.AsyncClient(base_url=url, trust_env=False) as http,
    ):
        reply = await ask(http, "{ availableModels { totalCount } sessions { id } }")
    assert reply["data"] == {"availableModels": {"totalCount": 3}, "sessions": None}
    [error] = reply["errors"]
    assert error["path"] == ["sessions"]
    assert error["message"] == "The database is away."
    assert error["extensions"] == {
        "code": "database_unavailable",
        "hint": "The database did not answer; try again.",
        "retryable": True,
    }


async def test_the_version_is_that_of_the_package(http: httpx.AsyncClient) -> None:
    assert (await ask(http, "{ version }"))["data"] == {"version": gateway.__version__}


async def test_an_empty_gateway_answers_empty_lists() -> None:
    server = GraphQLServer(provider_states=MemoryProviderStore())
    async with server.serving() as url, httpx.AsyncClient(base_url=url, trust_env=False) as http:
        reply = await ask(http, "{ availableModels { totalCount } providers { name } }")
    assert reply == {"data": {"availableModels": {"totalCount": 0}, "providers": []}}
