"""Answers that break at every event and are gone on with: the whole is what it would have been."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.core.continuation import Relay
from gateway.core.errors import UnsupportedCapability
from gateway.core.events import Delta, Event, Finished, Generation
from gateway.core.messages import GenerateRequest, ResponseFormat, Said, Tool
from gateway.core.names import ModelRef
from gateway.engine.decoding.loaded import LoadedModel
from gateway.engine.decoding.speech import take_up
from gateway.engine.engine import TransformersEngine
from gateway.engine.loading.loader import LoadConfig, load_model
from tests.integration.engine.conftest import StartEngine, ask
from tests.integration.engine.test_vision import CAT, show
from tests.tiny_models import build_model
from tests.tiny_tokenizers import qwen_tokenizer
from tests.tiny_vlms import build_vlm
from tests.told import collect

OTHER = ModelRef("huggingface", "other")


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("models") / "qwen"
    build_model(folder, tokenizer=qwen_tokenizer(), max_position_embeddings=4096)
    return load_model("qwen", folder, LoadConfig(device="cpu"))


async def cut(
    engine: TransformersEngine, request: GenerateRequest, places: Sequence[int]
) -> AsyncGenerator[Event, None]:
    """Yield what readers hear of an answer that breaks after so many deltas of each part."""
    relay = Relay(request, len(places))
    for place in (*places, None):
        deltas = 0
        async with aclosing(engine.stream(relay.begin())) as events:
            async for event in events:
                if deltas == place and isinstance(event, Delta | Finished):
                    break
                deltas += isinstance(event, Delta)
                for told in relay.tell(event):
                    yield told
                    if isinstance(told, Finished):
                        return
        relay.break_off("engine_failed")
        if relay.is_full:
            yield relay.end()
            return


def facts_of(answer: Generation) -> dict[str, Any]:
    """Return what must not depend on cuts: all but the random ids of calls, and the prompts."""
    return {
        "text": answer.text,
        "reasoning": answer.reasoning,
        "calls": [(call.name, call.arguments) for call in answer.tool_calls],
        "reason": answer.finish_reason,
        "tokens": answer.usage.completion_tokens,
        "logprobs": len(answer.logprobs),
    }


async def require_seamless(
    engine: TransformersEngine, request: GenerateRequest, *, every: int = 1
) -> Generation:
    """Cut the answer after so many of its deltas, once and twice; return it."""
    events = [event async for event in engine.stream(request)]
    count = sum(isinstance(event, Delta) for event in events)
    whole = await collect(_as_stream(events))
    for place in range(0, count + 1, every):
        for places in ([place], [place // 2, (place + 1) // 3]):
            joined = await collect(cut(engine, request, places))
            assert facts_of(joined) == facts_of(whole), f"cut at {places} of {count}"
            assert joined.switches or whole.finish_reason == "length"
    return whole


async def _as_stream(events: Sequence[Event]) -> AsyncGenerator[Event, None]:
    for event in events:
        yield event


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 1.3, "seed": 5},
        {"frequency_penalty": 1.0, "repetition_penalty": 1.2, "presence_penalty": 0.5},
        {"logprobs": 2},
    ],
)
async def test_the_joint_is_exact_wherever_the_answer_breaks(
    llama: LoadedModel, start_engine: StartEngine, options: dict[str, Any]
) -> None:
    async with start_engine(llama) as engine:
        whole = await require_seamless(engine, ask("Go on.", max_tokens=20, **options))
    assert whole.usage.completion_tokens == 20


async def test_stop_strings_are_found_over_the_joint(
    llama: LoadedModel, start_engine: StartEngine
) -> None:
    async with start_engine(llama) as engine:
        request = ask("Go on.", max_tokens=30, temperature=1.0, seed=2)
        text = (await collect(engine.stream(request))).text
        stop = text[9:14]
        assert text.find(stop) == 9
        options = replace(request.options, stop=(stop, "zz"))
        stopped = await require_seamless(engine, replace(request, options=options))
    assert (stopped.text, stopped.finish_reason) == (text[:9], "stop")


SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"type": "integer"}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
JSON = ResponseFormat("json_schema", SCHEMA)


async def test_an_answer_that_a_schema_binds_goes_on_bound(
    qwen: LoadedModel, start_engine: StartEngine
) -> None:
    request = replace(
        ask(temperature=1.0, seed=3, max_tokens=60), response_format=JSON, think=False
    )
    async with start_engine(qwen) as engine:
        whole = await require_seamless(engine, request)
    assert whole.text.lstrip().startswith("{")


async def test_calls_that_were_made_are_not_made_again(
    qwen: LoadedModel, start_engine: StartEngine
) -> None:
    tools = (Tool("weather", "", SCHEMA), Tool("clock", "", SCHEMA))
    request = ask(temperature=1.0, seed=4, max_tokens=300)
    request = replace(request, tools=tools, tool_choice="required", think=False)
    async with start_engine(qwen) as engine:
        whole = await require_seamless(engine, request)
    assert whole.tool_calls


async def test_thoughts_go_on(thinker: LoadedModel, start_engine: StartEngine) -> None:
    request = replace(ask(temperature=1.0, seed=1, max_tokens=60), response_format=JSON)
    async with start_engine(thinker) as engine:
        whole = await require_seamless(engine, request, every=2)
    assert whole.reasoning


async def test_an_image_is_seen_by_what_goes_on(tmp_path: Path, start_engine: StartEngine) -> None:
    folder = build_vlm(tmp_path / "vlm", "qwen2_vl")
    loaded = load_model("vlm", folder, LoadConfig(device="cpu"))
    async with start_engine(loaded) as engine:
        await require_seamless(engine, show("What is ", CAT, max_tokens=8), every=2)


@pytest.mark.parametrize("kind", ["llama", "qwen"])
async def test_text_of_another_model_is_gone_on_with_as_its_own_would_be(
    llama: LoadedModel, qwen: LoadedModel, start_engine: StartEngine, kind: str
) -> None:
    """Every byte is a token of these models, so a text of ASCII has one spelling."""
    loaded = llama if kind == "llama" else qwen
    request = ask("Go on.", max_tokens=12)
    text = "An answer, so far: "
    ids = tuple(loaded.encoder._ids(text, special=False))
    said = Said(text=text, tokens=len(ids), source=OTHER)
    async with start_engine(loaded) as engine:
        by_text = await collect(engine.stream(replace(request, said=said)))
        own = Said(text, "", 0, len(ids), ModelRef("huggingface", "tiny"), ids)
        by_ids = await collect(engine.stream(replace(request, said=own)))
    assert by_text.text == by_ids.text
    assert by_text.usage == by_ids.usage


async def test_what_another_model_said_counts_for_the_most_tokens(
    llama: LoadedModel, start_engine: StartEngine
) -> None:
    said = Said(text="Hello", tokens=5, source=OTHER)
    async with start_engine(llama) as engine:
        answer = await collect(engine.stream(replace(ask(max_tokens=12), said=said)))
    assert (answer.usage.completion_tokens, answer.finish_reason) == (7, "length")


def test_thoughts_of_another_model_stand_between_the_marks_of_this_one(
    thinker: LoadedModel, qwen: LoadedModel
) -> None:
    said = Said(text="So <think> it is.", reasoning="Hm.", tokens=3, source=OTHER)
    for loaded, lead in ((thinker, ""), (qwen, "<think>")):
        prompt = loaded.encoder.encode(ask())
        ids = loaded.encoder.encode_said(said, prompt, is_raw=False)
        assert loaded.encoder.spell(ids) == f"{lead}\nHm.\n</think>\n\nSo <think> it is."
        mark = loaded.encoder._ids("<think>", special=False)
        assert ids.count(mark[0]) == len(lead) // 7, "text that spells a mark is text"


def test_a_thought_of_another_model_is_not_gone_on_with(qwen: LoadedModel) -> None:
    request = replace(ask(), said=Said(reasoning="Hm", tokens=1, source=OTHER))
    with pytest.raises(UnsupportedCapability):
        take_up(request, ModelRef("huggingface", "tiny"), [1], None, qwen)  # type: ignore[arg-type]
