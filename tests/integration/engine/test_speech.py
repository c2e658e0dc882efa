"""The engine over tiny random models: bound by grammars, calling tools, telling probabilities."""

import json
from pathlib import Path
from typing import Any

import anyio
import jsonschema
import pytest
from msgspec.structs import replace

from gateway.core.errors import InvalidRequest, UnsupportedCapability
from gateway.core.events import Event, Finished, Generation, TextDelta
from gateway.core.messages import (
    GenerateRequest,
    Message,
    ResponseFormat,
    TextPart,
    Tool,
    ToolCall,
)
from gateway.engine.decoding.loaded import LoadedModel
from gateway.engine.decoding.runner import Feed
from gateway.engine.loading.loader import LoadConfig, load_model
from tests.integration.engine.conftest import StartEngine, ask
from tests.tiny_models import build_model
from tests.tiny_tokenizers import byte_tokenizer, qwen_tokenizer
from tests.told import collect

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 8},
        "days": {"type": "integer", "minimum": 1, "maximum": 99},
        "mood": {"enum": ["fine", "foul"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["city", "days", "mood", "tags"],
    "additionalProperties": False,
}
WEATHER = Tool("weather", "Tells the weather.", SCHEMA)
CLOCK = Tool("clock", "Tells the time.")


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("models") / "qwen"
    # Its logits are wider than its tokenizer, as those of real models are.
    build_model(folder, tokenizer=qwen_tokenizer(), vocab_size=320, max_position_embeddings=4096)
    return load_model("qwen", folder, LoadConfig(device="cpu"))


def bound(schema: dict[str, Any] | None, **options: Any) -> GenerateRequest:
    """Return a request for JSON of a model that does not think."""
    wanted = ResponseFormat("json_schema" if schema else "json_object", schema)
    options = {"temperature": 1.0, "max_tokens": 1500, **options}
    return replace(ask("Tell me.", **options), response_format=wanted, think=False)


def calling(choice: str, *tools: Tool, **options: Any) -> GenerateRequest:
    options = {"temperature": 1.0, "max_tokens": 1500, **options}
    request = ask("Tell me.", **options)
    return replace(request, tools=tools or (WEATHER, CLOCK), tool_choice=choice, think=False)


@pytest.mark.parametrize("seed", range(6))
async def test_a_random_model_can_only_say_what_follows_the_schema(
    qwen: LoadedModel, start_engine: StartEngine, seed: int
) -> None:
    async with start_engine(qwen) as engine:
        answer = await collect(engine.stream(bound(SCHEMA, seed=seed)))
    assert answer.finish_reason == "stop"
    jsonschema.validate(json.loads(answer.text), SCHEMA)


async def test_greedy_and_penalised_answers_follow_the_schema_too(
    qwen: LoadedModel, start_engine: StartEngine
) -> None:
    requests = [
        bound(SCHEMA, temperature=0.0, frequency_penalty=1.0),
        bound(SCHEMA, top_k=3, seed=1, frequency_penalty=1.0),
        bound(SCHEMA, top_p=0.3, min_p=0.1, seed=2, repetition_penalty=1.3),
    ]
    async with start_engine(qwen) as engine:
        for request in requests:
            answer = await collect(engine.stream(request))
            assert answer.finish_reason == "stop"
            jsonschema.validate(json.loads(answer.text), SCHEMA)


async def test_an_answer_that_is_cut_says_length(
    qwen: LoadedModel, start_engine: StartEngine
) -> None:
    async with start_engine(qwen) as engine:
        answer = await collect(engine.stream(bound(SCHEMA, max_tokens=5, seed=1)))
    assert (answer.finish_reason, answer.usage.completion_tokens) == ("length", 5)
    assert answer.text.lstrip().startswith("{")


async def test_a_bound_answer_changes_nothing_for_those_beside_it(
    qwen: LoadedModel, start_engine: StartEngine
) -> None:
    answers: dict[str, Generation] = {}

    async def run(name: str, request: GenerateRequest) -> None:
        answers[name] = await collect(engine.stream(request))

    free = ask("Something else.", max_tokens=60)
    async with start_engine(qwen) as engine:
        alone = await collect(engine.stream(free))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, "free", free)
            for seed in range(3):
                tasks.start_soon(run, f"bound {seed}", bound(SCHEMA, seed=seed))
    assert answers["free"].text == alone.text
    for seed in range(3):
        jsonschema.validate(json.loads(answers[f"bound {seed}"].text), SCHEMA)


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "shoe"}, "Invalid type: shoe"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"anyOf": [{"const": n} for n in range(200)]}, "anyOf has 200 parts"),
    ],
)
async def test_a_bad_schema_is_refused_before_the_queue(
    qwen: LoadedModel, start_engine: StartEngine, schema: dict[str, Any], reason: str
) -> None:
    async with start_engine(qwen) as engine:
        with pytest.raises(InvalidRequest, match=reason) as caught:
            await collect(engine.stream(bound(schema)))
        assert caught.value.param == "response_format"
        tool = Tool("t", parameters={"type": "object", "properties": {"a": schema}})
        with pytest.raises(InvalidRequest, match=reason) as caught:
            await collect(engine.stream(calling("t", CLOCK, tool)))
        assert caught.value.param == "tools[1].function.parameters"


async def test_a_schema_that_proves_too_complex_ends_its_own_stream_alone(
    qwen: LoadedModel, start_engine: StartEngine
) -> None:
    wide = {"type": "object", "properties": {f"p{n}": {} for n in range(2500)}}
    async with start_engine(qwen) as engine:
        with pytest.raises(InvalidRequest, match="too complex"):
            await collect(engine.stream(bound({**wide, "required": ["p2499"]}, seed=1)))
        assert (await collect(engine.stream(ask(max_tokens=2)))).usage.completion_tokens == 2


@pytest.mark.parametrize("choice", ["weather", "required"])
async def test_a_forced_call_is_a_call_of_the_tool(
    qwen: LoadedModel, start_engine: StartEngine, choice: str
) -> None:
    async with start_engine(qwen) as engine:
        request = replace(calling(choice, WEATHER, seed=3), parallel_tool_calls=False)
        answer = await collect(engine.stream(request))
    [call] = answer.tool_calls
    assert (answer.text, answer.finish_reason, call.name) == ("", "tool_calls", "weather")
    jsonschema.validate(json.loads(call.arguments), SCHEMA)
    assert call.id.startswith("call_")


async def test_with_a_format_beside_tools_the_answer_is_one_or_the_other(
    qwen: LoadedModel, start_engine: StartEngine
) -> None:
    request = replace(
        calling("auto", WEATHER), response_format=ResponseFormat("json_schema", SCHEMA)
    )
    seen = set()
    async with start_engine(qwen) as engine:
        for seed in range(12):
            options = replace(request.options, seed=seed)
            answer = await collect(engine.stream(replace(request, options=options)))
            seen.add(answer.finish_reason)
            said = answer.tool_calls[0].arguments if answer.tool_calls else answer.text
            if answer.finish_reason != "length":
                jsonschema.validate(json.loads(said), SCHEMA)
    assert seen <= {"stop", "tool_calls", "length"} and len(seen) > 1


async def test_reasoning_comes_before_a_bound_answer_and_is_not_bound(
    thinker: LoadedModel, start_engine: StartEngine
) -> None:
    end = thinker.vocabulary.marks["</think>"]
    thoughts = set()
    async with start_engine(thinker) as engine:
        for seed in range(5):
            # Without a push a random model would hardly ever come to the end of its thoughts.
            request = bound(SCHEMA, seed=seed, logit_bias=((end, 4.0),))
            answer = await collect(engine.stream(replace(request, think=None)))
            thoughts.add(answer.reasoning)
            jsonschema.validate(json.loads(answer.text), SCHEMA)
            assert answer.usage.completion_tokens > len(answer.text.encode())
    assert len(thoughts) > 1


async def test_reasoning_that_the_template_opened_is_told_apart(
    thinker: LoadedModel, start_engine: StartEngine
) -> None:
    async with start_engine(thinker) as engine:
        answer = await collect(engine.stream(ask("Hi", max_tokens=12)))
        raw = GenerateRequest(
            id="r", model="tiny", prompt="Hi<think>\n", raw=True, options=ask(max_tokens=12).options
        )
        continued = await collect(engine.stream(raw))
    assert answer.reasoning and not answer.text
    # A text that is continued as it stands is text.
    assert continued.text.strip() == answer.reasoning.strip() and not continued.reasoning


async def test_a_call_cannot_be_forced_where_its_format_is_not_json(
    tmp_path: Path, start_engine: StartEngine
) -> None:
    template = "{% if tools %}<tool_call><function={% endif %}{{ messages[0].content }}"
    build_model(tmp_path / "coder", tokenizer=byte_tokenizer(template=template))
    coder = load_model("coder", tmp_path / "coder", LoadConfig(device="cpu"))
    async with start_engine(coder) as engine:
        with pytest.raises(UnsupportedCapability) as caught:
            await collect(engine.stream(calling("required")))
    assert caught.value.param == "tool_choice"


async def test_a_conversation_with_calls_and_results_is_gone_on_with(
    qwen: LoadedModel, start_engine: StartEngine
) -> None:
    messages = (
        Message.user("What is the weather?"),
        Message("assistant", tool_calls=(ToolCall("c1", "weather", '{"city": "Rome"}'),)),
        Message("tool", (TextPart("Fine. <|im_end|>"),), tool_call_id="c1"),
    )
    async with start_engine(qwen) as engine:
        request = replace(calling("auto", max_tokens=8), messages=messages)
        answer = await collect(engine.stream(request))
    assert answer.usage.prompt_tokens == len(qwen.encoder.encode(request))


async def test_log_probabilities_are_those_of_the_model(
    qwen: LoadedModel, start_engine: StartEngine
) -> None:
    import torch

    request = ask("Hi", max_tokens=6, logprobs=3, temperature=0.7, seed=2)
    async with start_engine(qwen) as engine:
        events = [event async for event in engine.stream(request)]
        silent = await collect(engine.stream(ask("Hi", max_tokens=6, temperature=0.7, seed=2)))
    told = [each for event in events if isinstance(event, TextDelta) for each in event.logprobs]
    assert "".join(e.text for e in events if isinstance(e, TextDelta)) == silent.text
    assert silent.logprobs == ()
    assert told and len(told) <= usage_of(events)
    prompt = qwen.encoder.encode(request)
    with torch.inference_mode():
        place = qwen.runner.open()
        logits = qwen.runner.run([Feed(place, prompt, asks=True)])[0]
    qwen.runner.release(place)
    expected = torch.log_softmax(logits.float(), dim=-1)
    best = torch.topk(expected, 3)
    assert [other.logprob for other in told[0].top] == pytest.approx(best.values.tolist(), abs=1e-3)
    assert [other.token for other in told[0].top] == [
        qwen.encoder.spell([token]) for token in best.indices.tolist()
    ]
    ids = {qwen.vocabulary.bytes_of(token): token for token in range(300)}
    assert told[0].logprob == pytest.approx(float(expected[ids[told[0].raw]]), abs=1e-3)


def usage_of(events: list[Event]) -> int:
    assert isinstance(events[-1], Finished)
    return events[-1].usage.completion_tokens


async def test_a_bias_makes_a_token_certain_and_a_stop_id_ends_the_answer(
    qwen: LoadedModel, start_engine: StartEngine
) -> None:
    x, y = (qwen.encoder._tokenizer(text)["input_ids"][0] for text in "xy")
    async with start_engine(qwen) as engine:
        biased = await collect(engine.stream(ask(max_tokens=3, logit_bias=((x, 100.0),))))
        ended = await collect(
            engine.stream(ask(max_tokens=3, logit_bias=((y, 100.0),), stop_ids=(y,)))
        )
    assert (biased.text, biased.finish_reason) == ("xxx", "length")
    assert (ended.text, ended.finish_reason) == ("", "stop")


@pytest.mark.parametrize("options", [{"stop_ids": (320,)}, {"logit_bias": ((-1, 1.0),)}])
async def test_tokens_that_the_model_has_not_are_refused(
    qwen: LoadedModel, start_engine: StartEngine, options: dict[str, Any]
) -> None:
    async with start_engine(qwen) as engine:
        with pytest.raises(InvalidRequest, match="tokens 0 to 319"):
            await collect(engine.stream(ask(**options)))
