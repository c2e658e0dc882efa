"""openai-python, sync and async, against the OpenAI face."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.to_thread
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from gateway.core.errors import (
    ContextLengthExceeded,
    EngineFailed,
    GatewayError,
    ModelLoadFailed,
    NoRoom,
    ProviderTimeout,
    ProviderUnavailable,
)
from gateway.core.events import (
    Finished,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    Usage,
    Waiting,
)
from gateway.core.messages import (
    ImagePart,
    Message,
    Options,
    ResponseFormat,
    TextPart,
    Tool,
    ToolCall,
)
from tests.integration.http.serving import Served, serving
from tests.integration.http.written import watch_frames
from tests.scripted_provider import ECHO, ScriptedProvider, Step, answer

MODEL = "scripted/echo"
HELLO: list[Any] = [{"role": "user", "content": "hello"}]
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJg"
    "gg=="
)
LOOK = {
    "type": "function",
    "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object"}},
}


@asynccontextmanager
async def chatting(*script: Step, **settings: Any) -> AsyncIterator[tuple[AsyncOpenAI, Served]]:
    async with (
        serving(ScriptedProvider(script), **settings) as served,
        AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client, served


async def test_the_sync_client_lists_chats_and_streams() -> None:
    def use(url: str) -> tuple[list[str], str | None, str]:
        with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            ids = [model.id for model in client.models.list()]
            whole = client.chat.completions.create(model=MODEL, messages=HELLO)
            stream = client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        return ids, whole.choices[0].message.content, text

    async with serving(ScriptedProvider(answer("hel", "lo"))) as served:
        seen = await anyio.to_thread.run_sync(use, served.url)
    assert seen == (["scripted/echo"], "hello", "hello")


async def test_a_model_is_retrieved_by_its_id_and_by_its_bare_name() -> None:
    async with chatting(aliases={"parrot": MODEL}) as (client, _):
        for name in (MODEL, "echo", "parrot"):
            model = await client.models.retrieve(name)
            assert (model.id, model.owned_by, model.object) == (MODEL, "scripted", "model")
        with pytest.raises(openai.NotFoundError) as caught:
            await client.models.retrieve("scripted/ecko")
    assert caught.value.code == "model_not_found"
    assert "Did you mean scripted/echo?" in caught.value.message


async def test_a_model_of_a_dead_provider_is_not_said_to_be_unknown() -> None:
    provider = ScriptedProvider()
    provider.listing_error = ProviderUnavailable("scripted", "Nobody is there.")
    async with (
        serving(provider) as served,
        AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client,
    ):
        with pytest.raises(openai.InternalServerError) as caught:
            await client.models.retrieve(MODEL)
        listing = await client.models.list()
    assert caught.value.status_code == 503
    assert listing.data == []
    assert listing.model_extra is not None
    [fault] = listing.model_extra["provider_errors"]
    assert (fault["provider"], fault["code"]) == ("scripted", "provider_unavailable")


async def test_a_whole_answer_has_usage_reasoning_and_a_finish_reason() -> None:
    script = [
        Started(ECHO),
        ReasoningDelta("hm"),
        TextDelta("hel"),
        TextDelta("lo"),
        Finished("length", Usage(7, 3)),
    ]
    async with chatting(*script) as (client, served):
        reply = await client.chat.completions.create(model=MODEL, messages=HELLO)
        session = await served.last_session()
    assert reply.id == f"chatcmpl-{session.opened.id}"
    assert reply.object == "chat.completion" and reply.model == MODEL and reply.created > 0
    [choice] = reply.choices
    assert (choice.message.role, choice.message.content) == ("assistant", "hello")
    assert choice.message.model_extra == {"reasoning_content": "hm"}
    assert choice.finish_reason == "length"
    assert reply.usage is not None
    usage = reply.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (7, 3, 10)
    assert session.opened.face == "openai"


async def test_a_stream_has_the_role_first_then_deltas_the_reason_and_usage() -> None:
    script = [Waiting("loading"), *answer("hel", "lo", reasoning="hm")]
    async with chatting(*script) as (client, _):
        stream = await client.chat.completions.create(
            model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    *chunks, last, usage = chunks
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert deltas[0].role == "assistant" and deltas[0].content == ""
    assert deltas[1].model_extra == {"reasoning_content": "hm"}
    assert [delta.content for delta in deltas[2:]] == ["hel", "lo"]
    assert all(chunk.choices[0].finish_reason is None for chunk in chunks)
    assert last.choices[0].finish_reason == "stop"
    assert usage.choices == [] and usage.usage is not None
    assert (usage.usage.prompt_tokens, usage.usage.completion_tokens) == (3, 3)
    assert all(chunk.usage is None for chunk in (*chunks, last))
    assert len({chunk.id for chunk in (*chunks, last, usage)}) == 1
    assert {chunk.model for chunk in (*chunks, last, usage)} == {MODEL}


async def test_without_include_usage_no_chunk_lacks_choices() -> None:
    async with chatting(*answer("hi")) as (client, _):
        stream = await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
        assert all([chunk.choices async for chunk in stream])


async def test_tool_calls_have_index_id_and_arguments_as_text() -> None:
    script = [
        Started(ECHO),
        ToolCallDelta(0, ToolCall("c1", "look", '{"at": "x"}')),
        ToolCallDelta(1, ToolCall("c2", "look", "{}")),
        Finished("tool_calls", Usage(1, 2)),
    ]
    async with chatting(*script) as (client, _):
        ask: dict[str, Any] = {"model": MODEL, "messages": HELLO, "tools": [LOOK]}
        whole = await client.chat.completions.create(**ask)
        stream = await client.chat.completions.create(**ask, stream=True)
        chunks = [chunk async for chunk in stream]
    message = whole.choices[0].message
    assert message.content is None and message.tool_calls is not None
    assert [(c.id, c.type, c.function.arguments) for c in message.tool_calls] == [  # type: ignore[union-attr]
        ("c1", "function", '{"at": "x"}'),
        ("c2", "function", "{}"),
    ]
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert [(c.index, c.id, c.function and c.function.name) for c in calls] == [
        (0, "c1", "look"),
        (1, "c2", "look"),
    ]
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


async def test_every_field_reaches_the_model() -> None:
    provider = ScriptedProvider(answer("ok"))
    async with (
        serving(provider) as served,
        AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client,
    ):
        await client.chat.completions.create(
            model=MODEL,
            messages=[
                {"role": "developer", "content": "be brief"},
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "what is it"},
                        {
                            "type": "image_url",
                            "image_url": {"url": f"data:image/png;base64,{PIXEL}", "detail": "low"},
                        },
                    ],
                },
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {
                            "id": "c1",
                            "type": "function",
                            "function": {"name": "look", "arguments": "{}"},
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": "c1", "content": "a pixel"},
            ],
            max_completion_tokens=9,
            temperature=0.5,
            top_p=0.9,
            stop="END",
            seed=2**63 - 1,
            frequency_penalty=0.1,
            presence_penalty=-0.1,
            tools=[LOOK],  # type: ignore[list-item]
            tool_choice={"type": "function", "function": {"name": "look"}},
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "it", "schema": {"type": "object"}, "strict": True},
            },
            reasoning_effort="minimal",
            user="somebody",
            extra_body={
                "keep_alive": "1h30m",
                "options": {"top_k": 5, "temperature": 1.5},
                "min_p": 0.2,
                "anything": None,
            },
        )
    [request] = provider.requests
    assert request.messages[0] == Message("system", (TextPart("be brief"),))
    text, image = request.messages[1].parts
    assert text == TextPart("what is it")
    assert isinstance(image, ImagePart) and image.data.startswith(b"\x89PNG")
    assert request.messages[2].tool_calls == (ToolCall("c1", "look", "{}"),)
    assert request.messages[3].tool_call_id == "c1"
    assert request.options == Options(
        temperature=0.5,
        top_p=0.9,
        top_k=5,
        min_p=0.2,
        frequency_penalty=0.1,
        presence_penalty=-0.1,
        seed=2**63 - 1,
        max_tokens=9,
        stop=("END",),
    )
    assert request.tools == (Tool("look", "Looks.", {"type": "object"}),)
    assert request.tool_choice == "look"
    assert request.response_format == ResponseFormat("json_schema", {"type": "object"})
    assert (request.think, request.keep_alive_s) == ("low", 5400.0)


@pytest.mark.parametrize(
    ("error", "kind", "status"),
    [
        (ContextLengthExceeded("Too long."), openai.BadRequestError, 400),
        (ModelLoadFailed("It does not load."), openai.InternalServerError, 500),
        (EngineFailed("It broke."), openai.InternalServerError, 500),
        (NoRoom("All are in use."), openai.InternalServerError, 503),
        (ProviderTimeout("scripted", "It hangs."), openai.InternalServerError, 504),
    ],
)
async def test_errors_have_the_class_that_users_expect(
    error: GatewayError, kind: type[openai.APIStatusError], status: int
) -> None:
    async with chatting(error) as (client, _):
        for stream in (False, True):
            with pytest.raises(kind) as caught:
                await client.chat.completions.create(model=MODEL, messages=HELLO, stream=stream)  # type: ignore[call-overload]
            assert caught.value.status_code == status
            assert caught.value.code == error.code
            assert error.message in caught.value.message
            expected = "invalid_request_error" if status < 500 else "server_error"
            assert caught.value.type == expected
            assert caught.value.request_id is not None


async def test_wrong_requests_name_the_parameter() -> None:
    async with chatting(*answer("hi")) as (client, _):
        with pytest.raises(openai.BadRequestError, match="one answer") as several:
            await client.chat.completions.create(model=MODEL, messages=HELLO, n=2)
        with pytest.raises(openai.BadRequestError, match="from 0 to 2") as hot:
            await client.chat.completions.create(model=MODEL, messages=HELLO, temperature=3)
        with pytest.raises(openai.NotFoundError) as unknown:
            await client.chat.completions.create(model="scripted-echo!", messages=HELLO)
    assert several.value.param == "n"
    assert hot.value.param == "temperature"
    assert unknown.value.param == "model"


@pytest.mark.parametrize(
    ("error", "attempts"), [(NoRoom("Busy.", retry_after_s=0), 3), (ModelLoadFailed("Broken."), 1)]
)
async def test_only_what_may_work_later_is_retried(error: GatewayError, attempts: int) -> None:
    provider = ScriptedProvider([error])
    async with (
        serving(provider) as served,
        AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=2) as client,
    ):
        with pytest.raises(openai.InternalServerError):
            await client.chat.completions.create(model=MODEL, messages=HELLO)
    assert len(provider.requests) == attempts


@pytest.mark.parametrize("pings", [0, 2])
async def test_a_failure_in_the_middle_raises_api_error(
    pings: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    enough, seen = anyio.Event(), []

    def note(frames: bytes) -> None:
        if frames == b": ping\n\n":
            seen.append(frames)
        if len(seen) == pings:
            enough.set()

    watch_frames(monkeypatch, note)
    gates = [enough] if pings else []
    script = [
        Started(ECHO),
        TextDelta("he"),
        *gates,
        ProviderUnavailable("scripted", "It went away."),
    ]
    async with chatting(*script, ping_interval_s=0.02) as (client, _):
        stream = await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
        texts = []
        with pytest.raises(openai.APIError, match="It went away") as caught:
            async for chunk in stream:
                texts.append(chunk.choices[0].delta.content)
    assert texts == ["", "he"]
    assert caught.value.code == "provider_unavailable"
    assert caught.value.type == "server_error"


async def test_pings_disturb_nobody() -> None:
    gate = anyio.Event()
    async with (
        serving(
            ScriptedProvider([Started(ECHO), gate, *answer("hi")[1:]]), ping_interval_s=0.02
        ) as served,
        served.client.stream(
            "POST",
            "/v1/chat/completions",
            json={"model": MODEL, "messages": HELLO, "stream": True},
        ) as reply,
    ):
        body = b""
        async for chunk in reply.aiter_raw():
            body += chunk
            if body.count(b": ping\n\n") == 2:
                gate.set()
    blocks = [block for block in body.split(b"\n\n") if block]
    assert all(block == b": ping" or block.startswith(b"data: {") for block in blocks[:-1])
    assert blocks[-1] == b"data: [DONE]"


async def test_waiting_is_told_in_comments_that_the_client_skips() -> None:
    script = [Waiting("queued", position=2), Waiting("loading", fraction=0.5), *answer("hi")]
    async with serving(ScriptedProvider(script)) as served:
        raw = await served.client.post(
            "/v1/chat/completions", json={"model": MODEL, "messages": HELLO, "stream": True}
        )
    first, second, third, *_ = raw.content.split(b"\n\n")
    assert first == b': waiting {"stage":"queued","position":2}'
    assert second == b': waiting {"stage":"loading","fraction":0.5}'
    assert third.startswith(b"data: {")
    async with chatting(*script) as (client, _):
        stream = await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
        texts = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(texts) == "hi"


async def test_a_failure_after_waiting_still_has_its_status() -> None:
    script = [Waiting("loading", fraction=0.5), ProviderUnavailable("scripted", "It went away.")]
    async with serving(ScriptedProvider(script)) as served:
        reply = await served.client.post(
            "/v1/chat/completions", json={"model": MODEL, "messages": HELLO, "stream": True}
        )
    assert reply.status_code == 503
    assert reply.json()["error"]["code"] == "provider_unavailable"


async def test_completions_continue_the_prompt_as_it_stands() -> None:
    provider = ScriptedProvider(answer("hel", "lo"))
    async with (
        serving(provider) as served,
        AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client,
    ):
        whole = await client.completions.create(model=MODEL, prompt="Say", max_tokens=4)
        stream = await client.completions.create(
            model=MODEL, prompt=["Say"], stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        with pytest.raises(openai.BadRequestError, match="echo"):
            await client.completions.create(model=MODEL, prompt="Say", echo=True)
        with pytest.raises(openai.BadRequestError, match="one is allowed"):
            await client.completions.create(model=MODEL, prompt=["Say", "Tell"])
    assert (whole.object, whole.choices[0].text) == ("text_completion", "hello")
    assert whole.id.startswith("cmpl-") and whole.choices[0].finish_reason == "stop"
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == "hello"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None and chunks[-1].usage.total_tokens == 5
    assert [(r.prompt, r.raw, r.messages) for r in provider.requests] == [("Say", True, ())] * 2


@pytest.mark.parametrize(
    ("fields", "param", "hint"),
    [
        ({"functions": [{"name": "f", "parameters": {}}]}, "functions", "'tools'"),
        ({"function_call": "auto"}, "function_call", "'tool_choice'"),
        ({"modalities": ["text", "audio"]}, "modalities", "Leave it out."),
        ({"web_search_options": {"search_context_size": "low"}}, "web_search_options", "Leave"),
        ({"verbosity": "low"}, "verbosity", "Leave it out."),
        ({"guided_json": {"type": "object"}}, "guided_json", "'response_format'"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs", "effort"),
        ({"min_tokens": 5}, "min_tokens", "Leave it out."),
    ],
)
async def test_what_would_change_a_chat_and_is_not_supported_is_refused_by_its_name(
    fields: dict[str, Any], param: str, hint: str
) -> None:
    async with chatting(*answer("hi")) as (client, _):
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(model=MODEL, messages=HELLO, extra_body=fields)
    assert (refused.value.code, refused.value.param) == ("unsupported_capability", param)
    assert f"'{param}' is not supported." in refused.value.message
    assert hint in refused.value.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"best_of": 3}, "best_of"), ({"suffix": "end"}, "suffix"), ({"echo": True}, "echo")],
)
async def test_what_would_change_a_completion_and_is_not_supported_is_refused_by_its_name(
    fields: dict[str, Any], param: str
) -> None:
    async with chatting(*answer("hi")) as (client, _):
        with pytest.raises(openai.BadRequestError) as refused:
            await client.completions.create(model=MODEL, prompt="Say", **fields)
    assert (refused.value.code, refused.value.param) == ("unsupported_capability", param)


async def test_what_changes_no_answer_is_taken_and_ignored() -> None:
    harmless = {
        "best_of": 1,
        "echo": False,
        "suffix": "",
        "modalities": ["text"],
        "verbosity": "medium",
        "min_tokens": 0,
        "functions": [],
        "ignore_eos": False,
        "length_penalty": 1.0,
        "chat_id": "a frontend's own",
    }
    async with chatting(*answer("hi")) as (client, _):
        chat = await client.chat.completions.create(
            model=MODEL,
            messages=HELLO,
            n=1,
            user="me",
            store=True,
            metadata={"a": "b"},
            service_tier="auto",
            prompt_cache_key="k",
            safety_identifier="s",
            prediction={"type": "content", "content": "hi"},
            extra_body=harmless,
        )
        plain = await client.completions.create(model=MODEL, prompt="Say", best_of=1, suffix="")
    assert (chat.choices[0].message.content, plain.choices[0].text) == ("hi", "hi")


async def test_a_name_in_options_that_is_none_is_said() -> None:
    async with chatting(*answer("hi")) as (client, _):
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(
                model=MODEL, messages=HELLO, extra_body={"options": {"num_ctx": 4096}}
            )
    assert "num_ctx" in refused.value.message
