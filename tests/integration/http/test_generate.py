"""POST /api/v1/generate: one whole answer, and every field on its way to the model."""

import base64
import io

import anyio
from PIL import Image

from gateway.core.events import Finished, ReasoningDelta, Started, TextDelta, ToolCallDelta, Usage
from gateway.core.messages import ImagePart, Options, ResponseFormat, TextPart, Tool, ToolCall
from tests.integration.http.serving import serving
from tests.integration.http.sse_reader import HELLO
from tests.scripted_provider import ECHO, ScriptedProvider, answer

URL = "/api/v1/generate"


def _png() -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (2, 2)).save(data, "PNG")
    return data.getvalue()


async def test_an_answer_is_collected() -> None:
    script = [
        Started(ECHO, prompt_tokens=3),
        ReasoningDelta("hm"),
        TextDelta("hel"),
        TextDelta("lo"),
        ToolCallDelta(0, ToolCall("c1", "look", "{}")),
        Finished("tool_calls", Usage(3, 4)),
    ]
    async with serving(ScriptedProvider(script)) as served:
        reply = await served.client.post(URL, json=HELLO)
        session = await served.last_session()
    body = reply.json()
    timings = body.pop("timings")
    assert body == {
        "stream_id": session.opened.id,
        "decision_id": session.opened.id,
        "model": "scripted/echo",
        "text": "hello",
        "reasoning": "hm",
        "tool_calls": [{"id": "c1", "name": "look", "arguments": "{}"}],
        "finish_reason": "tool_calls",
        "usage": {"prompt_tokens": 3, "completion_tokens": 4},
    }
    assert set(timings) == {"queue_ms", "load_ms", "ttft_ms", "total_ms"}
    assert session.opened.face == "native"
    assert session.opened.request_id == reply.headers["x-request-id"]


async def test_a_plain_answer_has_no_empty_fields() -> None:
    async with serving(ScriptedProvider(answer("hi"))) as served:
        body = (await served.client.post(URL, json=HELLO)).json()
    assert "reasoning" not in body and "tool_calls" not in body


async def test_every_field_reaches_the_model() -> None:
    provider = ScriptedProvider(answer("ok"))
    png = _png()
    encoded = base64.b64encode(png).decode()
    options = {
        "temperature": 0,
        "top_p": 1,
        "top_k": 0,
        "min_p": 1,
        "repetition_penalty": 1.1,
        "frequency_penalty": -2,
        "presence_penalty": 2,
        "max_tokens": 1,
        "stop": ["a", "b"],
        "seed": -(2**63),
    }
    function = {"name": "look", "parameters": {"type": "object"}}
    async with serving(provider) as served:
        reply = await served.client.post(
            URL,
            json={
                "model": "echo",
                "messages": [
                    {"role": "system", "content": "brief"},
                    {"role": "user", "content": "see", "images": [encoded]},
                    {
                        "role": "assistant",
                        "content": "",
                        "reasoning_content": "hm",
                        "tool_calls": [
                            {"function": {"name": "look", "arguments": {"a": "\u00e9"}}}
                        ],
                    },
                    {"role": "tool", "content": "seen", "tool_name": "look"},
                ],
                "options": options,
                "tools": [{"type": "function", "function": function}],
                "tool_choice": "required",
                "response_format": {"type": "json_schema", "schema": {"type": "string"}},
                "think": "high",
                "keep_alive": -1,
                "detached": False,
            },
        )
    assert reply.status_code == 200, reply.text
    [request] = provider.requests
    assert request.model == "echo"
    assert request.messages[1].parts == (TextPart("see"), ImagePart(png))
    assert request.messages[2].reasoning == "hm"
    assert request.messages[2].tool_calls == (ToolCall("", "look", '{"a":"\u00e9"}'),)
    assert request.messages[3].tool_name == "look"
    assert request.options == Options(**{**options, "stop": ("a", "b")})  # type: ignore[arg-type]
    assert request.tools == (Tool("look", "", {"type": "object"}),)
    assert request.tool_choice == "required"
    assert request.response_format == ResponseFormat("json_schema", {"type": "string"})
    assert (request.think, request.keep_alive_s) == ("high", -1)


async def test_a_prompt_is_shorthand_and_with_images_one_user_message() -> None:
    provider = ScriptedProvider(answer("ok"))
    png = _png()
    images = [base64.b64encode(png).decode()]
    async with serving(provider) as served:
        for fields in ({"prompt": "Say"}, {"prompt": "See", "images": images}):
            reply = await served.client.post(URL, json={"model": "echo", **fields})
            assert reply.status_code == 200, reply.text
    plain, seeing = provider.requests
    assert (plain.prompt, plain.raw, plain.messages) == ("Say", False, ())
    assert seeing.prompt is None
    assert seeing.messages[0].parts == (TextPart("See"), ImagePart(png))


async def test_images_over_the_limits_are_refused() -> None:
    image = base64.b64encode(_png()).decode()
    ask = {"model": "echo", "prompt": "See", "images": [image]}
    async with serving(ScriptedProvider(answer("ok")), max_image_pixels=3) as served:
        reply = await served.client.post(URL, json=ask)
    assert reply.status_code == 413
    assert "2 x 2 pixels" in reply.json()["error"]["message"]


async def test_an_answer_that_somebody_else_cancels_is_a_typed_error() -> None:
    provider = ScriptedProvider([Started(ECHO), TextDelta("a"), anyio.Event()])
    replies = []
    async with serving(provider) as served, anyio.create_task_group() as tasks:

        async def ask() -> None:
            replies.append(await served.client.post(URL, json=HELLO))

        tasks.start_soon(ask)
        await provider.opened.wait()
        [live] = served.gateway.streams._live.values()
        live.cancel()
    [reply] = replies
    assert (reply.status_code, reply.json()["error"]["code"]) == (409, "stream_cancelled")
    assert reply.json()["error"]["retryable"] is True
