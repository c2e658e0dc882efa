"""A served gateway and a model that knows nothing: clients get what the grammar allows."""

import json
import time
from collections.abc import Iterator
from typing import Any, Literal

import httpx2
import openai
import pytest
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from tests.integration.process.conftest import GatewayProcess, Migrate, environment_of
from tests.tiny_models import build_model
from tests.tiny_tokenizers import qwen_tokenizer

MODEL = "huggingface/qwen"
# Models that reason do so before they answer; a random one would not come to an end.
QUIET: dict[str, Any] = {"reasoning_effort": "none"}
ASK: list[Any] = [{"role": "user", "content": "Plan it."}]


class Plan(BaseModel):
    """A plan for a trip."""

    model_config = ConfigDict(extra="forbid")

    city: str = Field(max_length=8)
    days: int = Field(ge=1, le=30)
    mood: Literal["fine", "foul"]


PLAN_TOOL: Any = {
    "type": "function",
    "function": {"name": "plan", "description": "Plans.", "parameters": Plan.model_json_schema()},
}


@pytest.fixture(scope="module")
def gateway(
    tmp_path_factory: pytest.TempPathFactory, migrated: Migrate
) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("gateway")
    build_model(folder / "models/qwen", tokenizer=qwen_tokenizer(), max_position_embeddings=4096)
    environment = environment_of(folder, folder / "models")
    migrated(environment)
    process = GatewayProcess(environment)
    yield process
    process.close()


@pytest.fixture
def client(gateway: GatewayProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_the_listing_says_what_the_model_can_do(gateway: GatewayProcess) -> None:
    listing: dict[str, Any] = {"models": []}
    while not listing["models"]:  # while torch is imported a listing may give up on a provider
        wanted = {"capability": "tools,structured"}
        listing = gateway.client.get("/api/v1/models", params=wanted).json()
        time.sleep(0.05)
    [model] = listing["models"]
    assert model["id"] == MODEL
    assert set(model["capabilities"]) == {"chat", "completion", "tools", "thinking", "structured"}


def test_openai_python_gets_what_it_asks_for(client: openai.OpenAI) -> None:
    create = client.chat.completions.create
    parsed = client.chat.completions.parse(
        model=MODEL, messages=ASK, response_format=Plan, temperature=1, seed=1, **QUIET
    )
    assert isinstance(parsed.choices[0].message.parsed, Plan)
    anything = create(
        model=MODEL, messages=ASK, response_format={"type": "json_object"}, max_tokens=400,
        temperature=1, seed=2, **QUIET,
    )  # fmt: skip
    assert (anything.choices[0].message.content or "").lstrip().startswith("{")

    forced: dict[str, Any] = {
        "model": MODEL, "messages": ASK, "tools": [PLAN_TOOL], "seed": 3, "temperature": 1,
        "tool_choice": {"type": "function", "function": {"name": "plan"}}, **QUIET,
    }  # fmt: skip
    whole = create(**forced).choices[0]
    assert whole.finish_reason == "tool_calls" and whole.message.tool_calls
    first = whole.message.tool_calls[0]
    Plan.model_validate_json(first.function.arguments)
    chunks = [chunk.choices[0] for chunk in create(**forced, stream=True)]
    calls = [call for choice in chunks for call in choice.delta.tool_calls or ()]
    assert "".join(call.function.arguments for call in calls) == first.function.arguments
    assert chunks[-1].finish_reason == "tool_calls"

    history = [*ASK, whole.message, {"role": "tool", "tool_call_id": first.id, "content": "Done."}]
    again = create(**{**forced, "messages": history, "tool_choice": "auto"}, max_tokens=5)
    assert again.usage is not None and again.usage.completion_tokens <= 5


def test_openai_python_reads_log_probabilities(client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {
        "model": MODEL, "messages": ASK, "max_tokens": 8, "logprobs": True, "top_logprobs": 2,
        **QUIET,
    }  # fmt: skip
    whole = client.chat.completions.create(**ask).choices[0]
    assert whole.logprobs is not None and whole.logprobs.content
    streamed = [
        entry
        for chunk in client.chat.completions.create(**ask, stream=True)
        if chunk.choices[0].logprobs is not None
        for entry in chunk.choices[0].logprobs.content or ()
    ]
    assert streamed == whole.logprobs.content
    raw = b"".join(bytes(entry.bytes or ()) for entry in streamed)
    assert raw.decode(errors="replace").startswith((whole.message.content or "").rstrip("\ufffd"))
    for entry in streamed:
        # Greedy: each chosen token is the likeliest of its step.
        assert entry.logprob == entry.top_logprobs[0].logprob <= 0
        assert len(entry.top_logprobs) == 2

    plain = client.completions.create(model=MODEL, prompt="Say", max_tokens=4, logprobs=2)
    said = plain.choices[0].logprobs
    assert said is not None and said.tokens and said.token_logprobs and said.text_offset
    assert len(said.tokens) == len(said.token_logprobs) == len(said.text_offset) <= 4
    assert said.text_offset[0] == 0
    bare = client.chat.completions.create(model=MODEL, messages=ASK, max_tokens=2, **QUIET)
    assert bare.choices[0].logprobs is None


def test_openai_python_is_told_what_is_wrong_with_a_schema(client: openai.OpenAI) -> None:
    wrong: Any = {
        "type": "json_schema",
        "json_schema": {"name": "x", "schema": {"type": "array", "uniqueItems": True}},
    }
    with pytest.raises(openai.BadRequestError, match="uniqueItems") as caught:
        client.chat.completions.create(model=MODEL, messages=ASK, response_format=wrong)
    assert (caught.value.code, caught.value.param) == ("invalid_request", "response_format")


def test_a_bias_reaches_the_model(client: openai.OpenAI) -> None:
    x = qwen_tokenizer()("x")["input_ids"][0]
    answer = client.chat.completions.create(
        model=MODEL, messages=ASK, max_tokens=3, logit_bias={str(x): 100}, **QUIET
    )
    assert answer.choices[0].message.content == "xxx"


def test_the_native_face_tells_the_same(gateway: GatewayProcess) -> None:
    body = {
        "model": MODEL,
        "prompt": "Plan it.",
        "think": False,
        "options": {"temperature": 1, "seed": 1, "max_tokens": 300, "logprobs": 1},
        "response_format": {"type": "json_schema", "schema": Plan.model_json_schema()},
    }
    answer = gateway.client.post("/api/v1/generate", json=body).json()
    Plan.model_validate_json(answer["text"])
    assert b"".join(bytes(e["bytes"]) for e in answer["logprobs"]).decode() == answer["text"]
    stream = gateway.client.post("/api/v1/stream", json=body).text
    deltas = [
        json.loads(line.removeprefix("data: "))
        for line in stream.splitlines()
        if line.startswith('data: {"text"')
    ]
    assert "".join(delta["text"] for delta in deltas) == answer["text"]
    told = [entry for delta in deltas for entry in delta["logprobs"]]
    assert [entry["bytes"] for entry in told] == [entry["bytes"] for entry in answer["logprobs"]]
    # The second prompt is not computed anew, so its numbers are rounded in another order.
    assert [entry["logprob"] for entry in told] == pytest.approx(
        [entry["logprob"] for entry in answer["logprobs"]], abs=1e-4
    )


@tool(args_schema=Plan)
def plan(city: str, days: int, mood: str) -> str:
    """Plan a trip."""
    return f"{days} {mood} days in {city}"


def test_langchain_binds_tools_and_structured_output(gateway: GatewayProcess) -> None:
    with httpx2.Client() as http_client:
        chat = ChatOpenAI(
            model=MODEL,
            base_url=f"{gateway.url}/v1",
            api_key=SecretStr("none"),
            max_retries=0,
            temperature=1,
            seed=4,
            reasoning_effort="none",
            http_client=http_client,
        )
        for method in ("json_schema", "function_calling"):
            structured = chat.with_structured_output(Plan, method=method)
            assert isinstance(structured.invoke("Plan it."), Plan)
        called = chat.bind_tools([plan], tool_choice="plan", strict=True).invoke("Plan it.")
    assert isinstance(called, AIMessage)
    [call] = called.tool_calls
    assert call["name"] == "plan" and set(call["args"]) == {"city", "days", "mood"}
