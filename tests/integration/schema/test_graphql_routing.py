"""Decisions and routes by GraphQL."""

from typing import Any

import httpx
import pytest
from gql import Client, gql
from gql.transport.aiohttp_websockets import AIOHTTPWebsocketsTransport
from gql.transport.exceptions import TransportQueryError

from gateway.core.errors import NoRoom
from gateway.core.keys import KeyOrder, KeyScope
from tests.integration.schema.graphql_server import GraphQLServer
from tests.scripted_provider import ScriptedProvider, answer

GENERATE = """subscription($input: GenerateInput!) { generate(input: $input) {
  streamId ... on StartedEvent { decisionId } } }"""
RECORD = """{ id kind source requestedModel rule ruleVersion outcome provider model error caller
  streamId openedAt closedAt timings { totalMs } candidates { model verdict code outcome
  attempts { atMs failedAfterMs error message } } }"""
DECISION = f"query($id: ID!) {{ decision(id: $id) {RECORD} }}"
DECISIONS = """query($filter: DecisionFilter, $first: Int = 20)
  { decisions(filter: $filter, first: $first) { id requestedModel outcome } }"""
EXPLAIN = f"query($input: GenerateInput!) {{ explainRoute(input: $input) {RECORD} }}"
ROUTE = """{ name source model order candidates { model weight } version updatedBy problem
  warnings }"""
ROUTES = f"{{ routes {ROUTE} }}"
SET = f"mutation($input: RouteInput!) {{ setRoute(input: $input) {ROUTE} }}"
DELETE = """mutation($name: String!, $version: Int)
  { deleteRoute(name: $name, version: $version) { name } }"""


def asking(model: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "USER", "content": "hello"}]}


@pytest.fixture
def graphql_server() -> GraphQLServer:
    providers = {
        "full": ScriptedProvider([NoRoom("Every model is in use.")], name="full"),
        "scripted": ScriptedProvider(answer("x")),
    }
    rules = {"any": ["full/echo", "scripted/echo"]}
    return GraphQLServer(providers, settings={"virtual_models": rules})  # type: ignore[arg-type]


async def ask(http: httpx.AsyncClient, query: str, **variables: Any) -> Any:
    """Return the data of an answer without errors."""
    answer = (await http.post("/graphql", json={"query": query, "variables": variables})).json()
    assert "errors" not in answer, answer
    return answer["data"]


async def refusal(http: httpx.AsyncClient, query: str, key: str = "", **variables: Any) -> Any:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    body = {"query": query, "variables": variables}
    answer = (await http.post("/graphql", json=body, headers=headers)).json()
    return answer["errors"][0]["extensions"]["code"]


async def generate(url: str, model: str) -> list[dict[str, Any]]:
    client = Client(transport=AIOHTTPWebsocketsTransport(url=url.replace("http", "ws")))
    query = gql(GENERATE)
    query.variable_values = {"input": asking(model)}
    async with client as session:
        return [event["generate"] async for event in session.subscribe(query)]


async def test_virtual_models_are_among_those_that_are_available(http: httpx.AsyncClient) -> None:
    query = "{ availableModels { models { id provider name virtual } } }"
    models = (await ask(http, query))["availableModels"]["models"]
    assert {"id": "any", "provider": "virtual", "name": "any", "virtual": True} in models
    assert {each["id"] for each in models if not each["virtual"]} == {"full/echo", "scripted/echo"}


async def test_a_stream_names_its_decision_which_tells_the_chain(
    http: httpx.AsyncClient, graphql_url: str
) -> None:
    events = await generate(graphql_url, "any")
    [decision_id] = {event["decisionId"] for event in events if "decisionId" in event}
    told = (await ask(http, DECISION, id=decision_id))["decision"]
    assert told["streamId"] == told["id"] == events[0]["streamId"]
    assert (told["kind"], told["rule"], told["ruleVersion"]) == ("STREAM", "listed", 0)
    assert (told["outcome"], told["provider"], told["source"]) == ("ANSWERED", "scripted", "MEMORY")
    shown = [(each["verdict"], each["outcome"]) for each in told["candidates"]]
    assert shown == [("CHOSEN", "FAILED"), ("NEXT", "ANSWERED")]
    assert told["candidates"][0]["attempts"][0]["error"] == "no_room"
    assert told["timings"]["totalMs"] > 0


async def test_an_error_names_its_decision_too(http: httpx.AsyncClient, graphql_url: str) -> None:
    with pytest.raises(TransportQueryError) as failed:
        await generate(graphql_url, "full/echo")
    assert failed.value.errors is not None
    extensions = failed.value.errors[0]["extensions"]
    assert extensions["code"] == "no_room"
    told = (await ask(http, DECISION, id=extensions["decisionId"]))["decision"]
    assert (told["outcome"], told["error"]) == ("FAILED", "no_room")
    listed = await ask(http, DECISIONS, filter={"outcome": "FAILED"})
    assert [each["id"] for each in listed["decisions"]] == [extensions["decisionId"]]
    listed = await ask(http, DECISIONS, filter={"until": "2001-01-01T00:00:00"})
    assert listed["decisions"] == []
    assert await refusal(http, DECISION, id="nobody") == "decision_not_found"
    assert await refusal(http, DECISIONS, first=0) == "invalid_request"


async def test_an_explanation_asks_nobody(
    http: httpx.AsyncClient, graphql_server: GraphQLServer
) -> None:
    told = (await ask(http, EXPLAIN, input=asking("any")))["explainRoute"]
    assert (told["id"], told["kind"], told["outcome"]) == (None, "DRY_RUN", "PLANNED")
    assert [each["model"] for each in told["candidates"]] == ["full/echo", "scripted/echo"]
    assert (await ask(http, DECISIONS))["decisions"] == []


async def test_routes_are_made_changed_and_removed_and_no_update_is_lost(
    http: httpx.AsyncClient,
) -> None:
    candidates = [{"model": "scripted/echo", "weight": 2.5}, {"model": "scripted/gone"}]
    wanted = {"name": "mine", "order": "WEIGHTED", "candidates": candidates, "version": 0}
    made = (await ask(http, SET, input=wanted))["setRoute"]
    assert (made["source"], made["order"], made["model"]) == ("DATABASE", "WEIGHTED", None)
    assert made["candidates"][0] == {"model": "scripted/echo", "weight": 2.5}
    assert made["warnings"] == ["'scripted/gone' is in no listing now."]
    assert await refusal(http, SET, input=wanted) == "route_changed"
    alias = {"name": "mine", "model": "scripted/echo", "version": made["version"]}
    changed = (await ask(http, SET, input=alias))["setRoute"]
    assert (changed["model"], changed["order"], changed["candidates"]) == (
        "scripted/echo",
        None,
        [],
    )
    shown = [(each["name"], each["source"]) for each in (await ask(http, ROUTES))["routes"]]
    assert shown == [("any", "CONFIG"), ("mine", "DATABASE")]
    fixed = {"name": "any", "model": "scripted/echo"}
    assert await refusal(http, SET, input=fixed) == "route_read_only"
    assert await refusal(http, SET, input={"name": "x", "model": "any"}) == "invalid_request"
    late = await refusal(http, DELETE, name="mine", version=made["version"])
    assert late == "route_changed"
    gone = await ask(http, DELETE, name="mine", version=changed["version"])
    assert gone["deleteRoute"] == {"name": "mine"}
    assert await refusal(http, DELETE, name="mine") == "route_not_found"


async def test_a_key_that_infers_may_ask_and_changes_nothing(
    http: httpx.AsyncClient, graphql_server: GraphQLServer
) -> None:
    _, key = await graphql_server.gateway.keys.create(KeyOrder("k", (KeyScope.INFER,)))
    assert await refusal(http, DECISION, key, id="nobody") == "decision_not_found"
    route = {"name": "x", "model": "scripted/echo"}
    assert await refusal(http, SET, key, input=route) == "forbidden"
    assert await refusal(http, DELETE, key, name="any") == "forbidden"
