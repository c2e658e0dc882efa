"""The library and collections by GraphQL."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.hub_folders import model_files, put_cached, put_local, put_partial
from tests.integration.schema.graphql_server import GraphQLServer, make_server

MODEL = """{ id source format path repository sha refs sizeBytes usable firstSeen lastUsed
    lastUpdated updateAvailable verification { verdict check reason at } }"""
LIBRARY = f"""{{ library {{ localModels {MODEL} cachedHubModels {MODEL} ollamaModels {{ id }}
    oddities {{ path reason }} disks {{ path modelsBytes freeBytes totalBytes }}
    providerErrors {{ code }} }} }}"""
VERIFY = f"""mutation($input: VerifyModelInput!)
    {{ verifyModel(input: $input) {{ model {MODEL} warnings fresh }} }}"""
CLEAN = """mutation($input: CleanModelsInput!) { cleanModels(input: $input)
    { removed { id reason freedBytes } keptInUse beforeBytes afterBytes dryRun } }"""
COLLECTION = "{ id name category description models createdAt updatedAt }"
CREATE = f"""mutation($input: CreateCollectionInput!)
    {{ createCollection(input: $input) {COLLECTION} }}"""
IMPORT = """mutation($file: String!, $dryRun: Boolean!)
    { importLibrary(file: $file, dryRun: $dryRun)
    { routes creates replaces unchanged configures dryRun } }"""


@pytest.fixture
def graphql_server(tmp_path: Path) -> GraphQLServer:
    server = make_server()
    server.settings = {"hf_model_path": tmp_path / "models", "hf_hub_cache": tmp_path / "hub"}
    return server


async def ask(http: httpx.AsyncClient, query: str, **variables: Any) -> Any:
    """Return the data of an answer without errors."""
    answer = (await http.post("/graphql", json={"query": query, "variables": variables})).json()
    assert "errors" not in answer, answer
    return answer["data"]


async def refusal(http: httpx.AsyncClient, query: str, **variables: Any) -> Any:
    answer = (await http.post("/graphql", json={"query": query, "variables": variables})).json()
    return answer["errors"][0]["extensions"]["code"]


async def test_the_library_is_what_http_tells(http: httpx.AsyncClient, tmp_path: Path) -> None:
    put_local(tmp_path / "models/m")
    put_cached(tmp_path / "hub", "o/n")
    (tmp_path / "hub/foreign").mkdir()
    shown = (await ask(http, LIBRARY))["library"]
    [local], [cached] = shown["localModels"], shown["cachedHubModels"]
    size = sum(map(len, model_files().values()))
    assert (local["id"], local["sizeBytes"], local["verification"]) == ("huggingface/m", size, None)
    assert (cached["repository"], cached["sha"], cached["refs"]) == ("o/n", "a" * 40, ["main"])
    assert {model["id"] for model in shown["ollamaModels"]} == {
        "ollama/llama3:8b",
        "ollama/llava:7b",
    }
    assert [odd["path"] for odd in shown["oddities"]] == [str(tmp_path / "hub/foreign")]
    assert [disk["modelsBytes"] for disk in shown["disks"]] == [size, size]


async def test_a_model_is_verified_removed_and_cleaned_up(
    http: httpx.AsyncClient, tmp_path: Path
) -> None:
    for name in ("one", "two", "three"):
        put_cached(tmp_path / "hub", f"o/{name}")
    found = (await ask(http, VERIFY, input={"model": "o/one"}))["verifyModel"]
    assert found["model"]["verification"]["verdict"] == "OK"
    assert (found["model"]["verification"]["check"], found["fresh"]) == ("CHECKSUMS", True)
    delete = "mutation($model: String!) { deleteModel(model: $model) { id freedBytes } }"
    gone = (await ask(http, delete, model="o/one"))["deleteModel"]
    assert gone["id"] == "huggingface/o/one" and gone["freedBytes"] > 0
    assert await refusal(http, delete, model="huggingface/o/one") == "model_not_found"
    planned = (await ask(http, CLEAN, input={"maxBytes": 0}))["cleanModels"]
    assert planned["dryRun"] and len(planned["removed"]) == 2
    done = (await ask(http, CLEAN, input={"maxBytes": 0, "dryRun": False}))["cleanModels"]
    assert done == {**planned, "dryRun": False}
    assert (await ask(http, LIBRARY))["library"]["cachedHubModels"] == []
    assert await refusal(http, CLEAN, input={"maxBytes": -1}) == "invalid_request"


async def test_what_downloads_left_is_cleaned_up(http: httpx.AsyncClient, tmp_path: Path) -> None:
    left = put_partial(tmp_path / "hub", "o/failed", size=7)
    query = """mutation($input: CleanModelsInput!) { cleanModels(input: $input)
        { unfinished { repository freedBytes lastUpdated } } }"""
    rule = {"unfinishedDays": 30, "dryRun": False}
    told = {"repository": "o/failed", "freedBytes": 7, "lastUpdated": "2001-09-09T01:46:40+00:00"}
    assert (await ask(http, query, input=rule))["cleanModels"]["unfinished"] == [told]
    assert not left.exists()


async def test_collections_live_and_move(http: httpx.AsyncClient) -> None:
    order = {"name": "small", "category": "chat", "models": ["a/b"]}
    made = (await ask(http, CREATE, input=order))["createCollection"]
    assert await refusal(http, CREATE, input=order) == "collection_exists"
    await ask(http, 'mutation { addToCollection(id: "small", model: "c") { id } }')
    await ask(http, 'mutation { removeFromCollection(id: "small", model: "a/b") { id } }')
    change = "mutation($input: ChangeCollectionInput!) { changeCollection(input: $input) { name } }"
    await ask(http, change, input={"id": made["id"], "name": "tiny"})
    query = f'{{ collections(category: "chat") {COLLECTION} }}'
    [shown] = (await ask(http, query))["collections"]
    assert (shown["id"], shown["name"], shown["models"]) == (made["id"], "tiny", ["c"])
    route = "mutation($n: String!) { %s { __typename } }"
    await ask(http, route % 'setRoute(input: { name: $n, model: "a/b" })', n="short")
    exported = (await ask(http, "{ exportLibrary }"))["exportLibrary"]
    await ask(http, route % "deleteRoute(name: $n)", n="short")
    gone = "mutation($id: ID!) { deleteCollection(id: $id) { name } }"
    await ask(http, gone, id=made["id"])
    assert await refusal(http, gone, id=made["id"]) == "collection_not_found"
    planned = (await ask(http, IMPORT, file=exported, dryRun=True))["importLibrary"]
    assert (planned["creates"], (await ask(http, query))["collections"]) == (["tiny"], [])
    assert planned["routes"] == ["short"]
    await ask(http, IMPORT, file=exported, dryRun=False)
    [again] = (await ask(http, query))["collections"]
    assert (again["name"], again["models"]) == ("tiny", ["c"])
    assert await refusal(http, IMPORT, file='{"version": 9}', dryRun=False) == "invalid_request"
