"""Rotations by GraphQL: what HTTP tells, and each change as it comes."""

from typing import Any

import httpx

from tests.integration.schema.sockets import connected

MODELS = ["ollama/llama3:8b", "huggingface/smol"]
STEP = "{ id trigger state phase origin wish target skipped { model reason } node askedAt }"
ROTATION = f"""{{ name model current models intervalSeconds cron timezone requests warmUp unload
    drainSeconds busyStreams yieldSeconds source paused dueAt counted step {STEP} }}"""
SET = f"mutation($input: RotationInput!) {{ setRotation(input: $input) {ROTATION} }}"
WATCH = "subscription($names: [String!]) { rotationChanged(names: $names)" + (
    " { name rotation { current paused step { wish } } } }"
)


async def ask(http: httpx.AsyncClient, query: str, **variables: Any) -> Any:
    """Return the data of an answer without errors."""
    answer = (await http.post("/graphql", json={"query": query, "variables": variables})).json()
    assert "errors" not in answer, answer
    return answer["data"]


async def refusal(http: httpx.AsyncClient, query: str, **variables: Any) -> Any:
    answer = (await http.post("/graphql", json={"query": query, "variables": variables})).json()
    return answer["errors"][0]["extensions"]["code"]


async def made(http: httpx.AsyncClient, **values: Any) -> Any:
    wanted = {"name": "r", "models": MODELS, **values}
    return (await ask(http, SET, input=wanted))["setRotation"]


async def test_a_rotation_is_what_http_tells(http: httpx.AsyncClient) -> None:
    rotation = await made(http, requests=2**33, cron="0 8 * * *", timezone="Europe/Berlin")
    told = (await http.get("/api/v1/rotations/r")).json()
    same = {
        "name": "name",
        "model": "model",
        "current": "current",
        "models": "models",
        "intervalSeconds": "interval_s",
        "cron": "cron",
        "timezone": "timezone",
        "requests": "requests",
        "warmUp": "warm_up",
        "unload": "unload",
        "drainSeconds": "drain_s",
        "busyStreams": "busy_streams",
        "yieldSeconds": "yield_s",
        "source": "source",
        "paused": "paused",
        "counted": "counted",
        "step": "step",
    }
    assert {key: rotation[key] for key in same} == {key: told[of] for key, of in same.items()}
    assert rotation["dueAt"]
    listed = await ask(http, f'{{ rotations {ROTATION} rotation(name: "r") {ROTATION} }}')
    assert listed == {"rotations": [rotation], "rotation": rotation}
    listing = '{ availableModels(filter: {providers: ["rotation"]}) { models { id state } } }'
    [model] = (await ask(http, listing))["availableModels"]["models"]
    assert model == {"id": "rotation/r", "state": "LOADED"}


async def test_it_is_paused_resumed_advanced_and_deleted(http: httpx.AsyncClient) -> None:
    await made(http, intervalSeconds=60.0)
    paused = await ask(http, 'mutation { pauseRotation(name: "r") { paused dueAt } }')
    assert paused == {"pauseRotation": {"paused": True, "dueAt": None}}
    resumed = await ask(http, 'mutation { resumeRotation(name: "r") { paused } }')
    assert resumed == {"resumeRotation": {"paused": False}}
    advance = f'mutation {{ advanceRotation(name: "r", to: "huggingface/smol") {STEP} }}'
    step = (await ask(http, advance))["advanceRotation"]
    assert (step["state"], step["phase"], step["wish"]) == ("QUEUED", "WAITING", MODELS[1])
    history = await ask(http, f'{{ rotationHistory(name: "r") {STEP} }}')
    assert history == {"rotationHistory": [step]}
    assert await refusal(http, advance) == "stale_transition"
    gone = await ask(http, 'mutation { deleteRotation(name: "r") { name } }')
    assert gone == {"deleteRotation": {"name": "r"}}
    assert await refusal(http, '{ rotation(name: "r") { name } }') == "rotation_not_found"
    assert await refusal(http, SET, input={"name": "r", "models": []}) == "invalid_request"


async def test_a_subscriber_is_told_the_present_then_each_change(
    http: httpx.AsyncClient, graphql_url: str
) -> None:
    await made(http)
    await made(http, name="other")
    async with connected(graphql_url) as socket:
        await socket.subscribe("w", WATCH, variables={"names": ["r"]})

        async def told() -> Any:
            return (await socket.receive())["payload"]["data"]["rotationChanged"]

        present = {"current": MODELS[0], "paused": False, "step": None}
        assert await told() == {"name": "r", "rotation": present}
        await ask(http, 'mutation { pauseRotation(name: "other") { name } }')
        await ask(http, 'mutation { pauseRotation(name: "r") { name } }')
        assert await told() == {"name": "r", "rotation": {**present, "paused": True}}
        await ask(http, 'mutation { deleteRotation(name: "r") { name } }')
        assert await told() == {"name": "r", "rotation": None}
        await socket.subscribe("x", WATCH, variables={"names": ["nobody"]})
        error = (await socket.receive())["payload"]
        assert "rotation_not_found" in str(error)
