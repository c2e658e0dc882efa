"""Loading, unloading, configuring and planning by GraphQL."""

from dataclasses import asdict, fields
from typing import Any

import anyio
import httpx
import pytest

from gateway.core.errors import ModelLoadFailed
from gateway.core.messages import Options
from schema.control import GenerationOptions
from schema.inputs import OptionsInput, TokenBiasInput
from tests.integration.schema.graphql_server import GraphQLServer, make_loading_server
from tests.integration.schema.loading_provider import LoadingProvider

STATUS = """{ id state memoryBytes leases queued pinned expiresInSeconds fraction etaSeconds device
    batched requiresReload error { code message hint retryable }
    config { pinned keepAliveSeconds load { device dtype quantization contextLength } } }"""
REPORT = """{ id requiresReload config { pinned keepAliveSeconds
    load { device dtype quantization contextLength }
    defaults { temperature topP topK minP repetitionPenalty frequencyPenalty presencePenalty
        seed maxTokens stop stopTokenIds logprobs logitBias { token bias } } } }"""
CONFIGURE = f"""mutation($input: ConfigureModelInput!)
    {{ configureModel(input: $input) {REPORT} }}"""
UNSET_OPTIONS = {
    "temperature": None,
    "topP": None,
    "topK": None,
    "minP": None,
    "repetitionPenalty": None,
    "frequencyPenalty": None,
    "presencePenalty": None,
    "seed": None,
    "maxTokens": None,
    "stop": [],
    "stopTokenIds": [],
    "logprobs": None,
    "logitBias": [],
}


@pytest.fixture
def provider() -> LoadingProvider:
    return LoadingProvider("memory", make_loading_server().providers["memory"].listed)


@pytest.fixture
def graphql_server(provider: LoadingProvider) -> GraphQLServer:
    return GraphQLServer({"memory": provider}, is_tracking=True)


async def ask(http: httpx.AsyncClient, query: str, **variables: Any) -> Any:
    """Return the data of an answer without errors."""
    answer = (await http.post("/graphql", json={"query": query, "variables": variables})).json()
    assert "errors" not in answer, answer
    return answer["data"]


async def refusal(http: httpx.AsyncClient, query: str, **variables: Any) -> Any:
    """Return the one error of an answer."""
    answer = (await http.post("/graphql", json={"query": query, "variables": variables})).json()
    [error] = answer["errors"]
    return error


async def load(http: httpx.AsyncClient, **input: Any) -> Any:
    query = f"mutation($input: LoadModelInput!) {{ loadModel(input: $input) {STATUS} }}"
    return (await ask(http, query, input={"model": "memory/tiny", **input}))["loadModel"]


async def test_a_load_answers_at_once_and_is_followed_by_its_status(
    http: httpx.AsyncClient, provider: LoadingProvider
) -> None:
    provider.gate = anyio.Event()
    begun = await load(http)
    assert begun["state"] == "LOADING"
    query = f'{{ modelStatus(model: "tiny") {STATUS} loadedModels {{ id state }} }}'
    seen = await ask(http, query)
    assert seen["loadedModels"] == [{"id": "memory/tiny", "state": "LOADING"}]
    assert (seen["modelStatus"]["fraction"], seen["modelStatus"]["etaSeconds"]) == (0.5, 1.5)
    provider.gate.set()
    loaded = await load(http, wait=True)
    assert loaded == {
        "id": "memory/tiny",
        "state": "LOADED",
        "memoryBytes": 1000,
        "leases": 0,
        "queued": 0,
        "pinned": False,
        "expiresInSeconds": None,
        "fraction": None,
        "etaSeconds": None,
        "device": "cpu",
        "batched": True,
        "requiresReload": False,
        "error": None,
        "config": {
            "pinned": False,
            "keepAliveSeconds": None,
            "load": {
                "device": "auto",
                "dtype": "AUTO",
                "quantization": "NONE",
                "contextLength": None,
            },
        },
    }


async def test_a_load_takes_its_config_pin_and_keep_alive(http: httpx.AsyncClient) -> None:
    config = {"device": "cpu", "dtype": "BFLOAT16", "quantization": "INT8", "contextLength": 64}
    status = await load(http, config=config, pinned=True, keepAliveSeconds=-1, wait=True)
    assert status["config"] == {"pinned": True, "keepAliveSeconds": -1.0, "load": config}


async def test_a_load_that_fails_is_told_by_who_waits_and_by_the_status(
    http: httpx.AsyncClient, provider: LoadingProvider
) -> None:
    provider.load_error = ModelLoadFailed("The weights are torn.")
    query = 'mutation { loadModel(input: {model: "memory/tiny", wait: true}) { id } }'
    error = await refusal(http, query)
    assert error["extensions"]["code"] == "model_load_failed"
    assert error["path"] == ["loadModel"]
    seen = await ask(
        http, f'{{ modelStatus(model: "memory/tiny") {STATUS} loadedModels {{ id }} }}'
    )
    assert seen["modelStatus"]["state"] == "FAILED"
    assert seen["modelStatus"]["error"]["code"] == "model_load_failed"
    assert seen["modelStatus"]["error"]["message"] == "The weights are torn."
    assert seen["loadedModels"] == []


async def test_an_unload_takes_the_model_out_of_memory(http: httpx.AsyncClient) -> None:
    await load(http, wait=True)
    query = 'mutation { unloadModel(input: {model: "tiny", force: true, wait: true}) { id state } }'
    unloaded = await ask(http, query)
    assert unloaded["unloadModel"] == {"id": "memory/tiny", "state": "NOT_LOADED"}
    assert (await ask(http, "{ loadedModels { id } }"))["loadedModels"] == []


async def test_a_plan_tells_what_a_load_would_take(http: httpx.AsyncClient) -> None:
    fields = "{ id needBytes freeBytes budgetBytes evictions fits alreadyLoaded reason }"
    query = (
        f'query($config: LoadConfigInput) {{ planLoad(model: "tiny", config: $config) {fields} }}'
    )
    plan = (await ask(http, query))["planLoad"]
    assert plan == {
        "id": "memory/tiny",
        "needBytes": 1000,
        "freeBytes": 5000,
        "budgetBytes": 5000,
        "evictions": [],
        "fits": True,
        "alreadyLoaded": False,
        "reason": None,
    }
    plan = (await ask(http, query, config={"contextLength": 6000}))["planLoad"]
    assert (plan["fits"], plan["reason"]) == (False, "memory/tiny does not fit.")
    mutation = """mutation { loadModel(
        input: {model: "tiny", config: {contextLength: 6000}}) { id } }"""
    assert (await refusal(http, mutation))["extensions"]["code"] == "model_too_large"


async def test_a_config_is_decided_in_parts(http: httpx.AsyncClient) -> None:
    defaults = {
        "temperature": 0.5,
        "seed": 2**64 - 1,
        "stop": ["\n", "END"],
        "maxTokens": 7,
        "stopTokenIds": [2, 3],
        "logprobs": 5,
        "logitBias": [{"token": 7, "bias": -100.0}, {"token": 8, "bias": 0.5}],
    }
    answer = await ask(
        http, CONFIGURE, input={"model": "tiny", "defaults": defaults, "keepAliveSeconds": 60}
    )
    report = answer["configureModel"]
    assert report["requiresReload"] is False
    assert report["config"]["defaults"] == UNSET_OPTIONS | defaults
    assert report["config"]["keepAliveSeconds"] == 60.0

    later = {"model": "tiny", "load": {"dtype": "FLOAT32"}, "pinned": True}
    report = (await ask(http, CONFIGURE, input=later))["configureModel"]
    assert report["requiresReload"] is True
    assert report["config"]["load"]["dtype"] == "FLOAT32"
    assert report["config"]["defaults"]["maxTokens"] == 7
    assert (report["config"]["pinned"], report["config"]["keepAliveSeconds"]) == (True, 60.0)

    reset = {"model": "tiny", "keepAliveSeconds": None, "defaults": {}}
    await ask(http, CONFIGURE, input=reset)
    seen = (await ask(http, f'{{ modelConfig(model: "tiny") {REPORT} }}'))["modelConfig"]
    assert seen["config"]["keepAliveSeconds"] is None
    assert seen["config"]["defaults"] == UNSET_OPTIONS
    assert seen["config"]["pinned"] is True


@pytest.mark.parametrize(
    "wrong",
    [
        {"defaults": {"temperature": 3}},
        {"defaults": {"topP": 0}},
        {"defaults": {"maxTokens": 0}},
        {"defaults": {"seed": 2**64}},
        {"defaults": {"seed": 1.5}},
        {"defaults": {"seed": True}},
        {"defaults": {"stop": [""]}},
        {"defaults": {"stop": ["x"] * 17}},
        {"defaults": {"stop": ["a\x00"]}},
        {"defaults": {"stopTokenIds": [-1]}},
        {"defaults": {"stopTokenIds": [1] * 1025}},
        {"defaults": {"logprobs": 21}},
        {"defaults": {"logitBias": [{"token": 1, "bias": 101}]}},
        {"defaults": {"logitBias": [{"token": -1, "bias": 1}]}},
        {"defaults": {"logitBias": [{"token": 1, "bias": 1}] * 2}},
        {"load": {"device": "tpu"}},
        {"load": {"contextLength": 0}},
        {"load": {"dtype": "INT8"}},
        {"keepAliveSeconds": 1e300},
        {"model": ""},
    ],
)
async def test_what_is_out_of_range_is_refused(
    http: httpx.AsyncClient, wrong: dict[str, Any]
) -> None:
    error = await refusal(http, CONFIGURE, input={"model": "tiny", **wrong})
    assert error["extensions"]["code"] in ("invalid_request", "invalid_text")


async def test_what_graphql_shows_of_defaults_is_what_it_takes_and_all_there_is() -> None:
    shown, taken = fields(GenerationOptions), fields(OptionsInput)
    there = {name.replace("stop_ids", "stop_token_ids") for name in Options.__struct_fields__}
    assert {field.name for field in shown} == {field.name for field in taken} == there
    options = Options(stop_ids=(2,), logprobs=0, logit_bias=((7, -1.0),), stop=("x",), top_k=3)
    given = asdict(GenerationOptions.of(options))
    given["logit_bias"] = [TokenBiasInput(**bias) for bias in given["logit_bias"]]
    assert OptionsInput(**given).to_core() == options


async def test_a_field_that_fails_costs_only_itself(http: httpx.AsyncClient) -> None:
    query = (
        '{ modelStatus(model: "memory/tiny") { id } modelConfig(model: "nobody") { id } version }'
    )
    answer = (await http.post("/graphql", json={"query": query})).json()
    assert answer["data"]["modelStatus"] == {"id": "memory/tiny"}
    assert answer["data"]["modelConfig"] is None
    [error] = answer["errors"]
    assert error["extensions"]["code"] == "model_not_found"
