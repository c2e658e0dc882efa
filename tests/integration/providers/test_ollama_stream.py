"""Answers that end well, over real HTTP: every event in order, whatever the bytes come like."""

import asyncio
import json
from contextlib import aclosing

import pytest

from gateway.core.errors import InvalidRequest
from gateway.core.events import Finished, ReasoningDelta, Started, TextDelta, ToolCallDelta, Usage
from gateway.core.messages import Options, ResponseFormat, Tool, ToolCall
from tests.integration.ollama_peer import (
    OllamaPeer,
    answer,
    chat_end,
    chat_line,
    chunks,
    line,
    tool_call,
)
from tests.integration.providers.ollama_support import REF, ask, read, say, serving
from tests.told import collect, stream_of

WEATHER = Tool("weather", "Tells the weather", {"type": "object", "properties": {}})


async def test_a_chat_streams_text_between_one_start_and_one_end(ollama_peer: OllamaPeer) -> None:
    """T1"""
    ollama_peer.script("llama3.2", chunks([chat_line("Hel"), chat_line("lo"), chat_end()]))
    async with serving(ollama_peer.url) as service:
        assert await read(service) == [
            Started(REF),
            TextDelta("Hel"),
            TextDelta("lo"),
            Finished("stop", Usage(7, 3)),
        ]


async def test_a_prompt_goes_to_generate_and_streams_the_same(ollama_peer: OllamaPeer) -> None:
    """T1"""
    ollama_peer.add_model("llama3.2")
    async with serving(ollama_peer.url) as service:
        events = await read(service, ask(messages=(), prompt="One two", raw=True))
    assert [event.text for event in events if isinstance(event, TextDelta)] == [
        "You",
        " said:",
        " One",
        " two",
    ]
    assert events[-1] == Finished("stop", Usage(12, 4))
    (seen,) = ollama_peer.requests
    assert seen.path == "/api/generate"
    assert seen.body == {
        "model": "llama3.2:latest",
        "prompt": "One two",
        "raw": True,
        "stream": True,
        "options": {},
        "truncate": False,
    }


async def test_text_in_the_last_line_is_not_lost(ollama_peer: OllamaPeer) -> None:
    """T2"""
    ollama_peer.script("llama3.2", chunks([chat_line("a"), chat_end("b")]))
    async with serving(ollama_peer.url) as service:
        events = await read(service)
    assert events[1:3] == [TextDelta("a"), TextDelta("b")]


@pytest.mark.parametrize("late", [False, True], ids=["in a line", "in the last line"])
async def test_tool_calls_keep_ids_and_the_order_of_arguments(
    ollama_peer: OllamaPeer, late: bool
) -> None:
    """T3"""
    calls = [tool_call("weather", {"z": 1, "a": [2.50]}, "id-7"), tool_call("time", {})]
    steps = (
        [chat_line("x"), chat_end(tool_calls=calls)]
        if late
        else [chat_line("x"), chat_line(tool_calls=calls), chat_end()]
    )
    ollama_peer.script("llama3.2", chunks(steps))
    async with serving(ollama_peer.url) as service:
        events = await read(service, ask(tools=(WEATHER,)))
    assert events[2:] == [
        ToolCallDelta(0, ToolCall("id-7", "weather", '{"z":1,"a":[2.5]}')),
        ToolCallDelta(1, ToolCall("call_r1_1", "time", "{}"), tokens=0),
        Finished("tool_calls", Usage(7, 3)),
    ]


async def test_thinking_is_apart_from_text(ollama_peer: OllamaPeer) -> None:
    """T4"""
    ollama_peer.script("llama3.2", chunks([chat_line(thinking="Hm"), chat_line("Yes"), chat_end()]))
    async with serving(ollama_peer.url) as service:
        events = await read(service, ask(think="high"))
    assert events[1:3] == [ReasoningDelta("Hm"), TextDelta("Yes")]
    assert ollama_peer.requests[0].body["think"] == "high"


async def test_thinking_of_generate_stands_beside_its_response(ollama_peer: OllamaPeer) -> None:
    """T4"""
    lines = [line(thinking="Hm", response="", done=False), line(response="Yes", done=True)]
    ollama_peer.script("llama3.2", chunks(lines))
    async with serving(ollama_peer.url) as service:
        events = await read(service, ask(messages=(), prompt="x"))
    assert events[1:3] == [ReasoningDelta("Hm"), TextDelta("Yes")]


@pytest.mark.parametrize("keep_alive_s, reason", [(None, "load"), (0.0, "unload")])
async def test_loading_and_unloading_are_empty_answers(
    ollama_peer: OllamaPeer, keep_alive_s: float | None, reason: str
) -> None:
    """T9"""
    ollama_peer.add_model("llama3.2")
    ollama_peer.load("llama3.2")
    async with serving(ollama_peer.url) as service:
        events = await read(service, ask(messages=(), keep_alive_s=keep_alive_s))
        assert events == [Started(REF), Finished("stop", Usage())]
        assert len(await service.resident()) == (1 if reason == "load" else 0)


async def test_merged_split_and_windows_lines_read_the_same(ollama_peer: OllamaPeer) -> None:
    """T10"""
    whole = chat_line("Grüße ") + b"\r\n\n" + chat_line("🦙!") + chat_end()
    windows = whole.replace(b"\n", b"\r\n")
    texts = []
    async with serving(ollama_peer.url) as service:
        for steps in ([whole], [bytes([byte]) for byte in whole], [windows], [whole.rstrip()]):
            ollama_peer.script("llama3.2", chunks(steps))
            texts.append((await collect(stream_of(service, ask(), REF))).text)
    assert texts == ["Grüße 🦙!"] * 4


async def test_a_line_of_two_megabytes_is_read(ollama_peer: OllamaPeer) -> None:
    """T10"""
    big = "ä" * 1_000_000
    ollama_peer.script("llama3.2", chunks([chat_line(big), chat_end()]))
    async with serving(ollama_peer.url) as service:
        assert (await collect(stream_of(service, ask(), REF))).text == big


async def test_missing_metrics_are_counted(ollama_peer: OllamaPeer) -> None:
    """T11"""
    steps = [chat_line("a"), chat_line(""), chat_line(thinking="b"), chat_end(metrics=False)]
    ollama_peer.script("llama3.2", chunks(steps))
    async with serving(ollama_peer.url) as service:
        events = await read(service)
    assert events[-1] == Finished("stop", Usage(0, 2))


@pytest.mark.parametrize(
    "told, reason", [("length", "length"), ("stop", "stop"), ("novel", "stop"), (None, "stop")]
)
async def test_every_done_reason_is_an_end(
    ollama_peer: OllamaPeer, told: str | None, reason: str
) -> None:
    """T11"""
    ollama_peer.script("llama3.2", chunks([chat_line("a"), chat_end(reason=told)]))
    async with serving(ollama_peer.url) as service:
        assert (await read(service))[-1] == Finished(reason, Usage(7, 3))  # type: ignore[arg-type]


async def test_everything_asked_for_reaches_ollama_and_no_more(ollama_peer: OllamaPeer) -> None:
    """T16, T17: what is not asked for is not sent, above all no num_ctx."""
    ollama_peer.script("llama3.2", chunks([chat_end()]))
    call = ToolCall("c1", "weather", '{"z": 1, "a": 12345678901234567890123}')
    request = ask(
        messages=(
            say("system", "Be brief"),
            say("user", "Look", images=(b"\x89PNG\xff",)),
            say("assistant", "", reasoning="Hm", tool_calls=(call,)),
            say("tool", "sunny", tool_call_id="c1", tool_name="weather"),
        ),
        options=Options(
            temperature=0.0,
            top_p=0.5,
            top_k=3,
            min_p=0.1,
            repetition_penalty=1.1,
            frequency_penalty=0.2,
            presence_penalty=0.3,
            seed=0,
            max_tokens=5,
            stop=("END",),
        ),
        tools=(WEATHER,),
        response_format=ResponseFormat("json_schema", {"type": "object"}),
        think=False,
        keep_alive_s=-1.0,
    )
    async with serving(ollama_peer.url) as service:
        await read(service, request)
    (seen,) = ollama_peer.requests
    assert b'"arguments":{"z": 1, "a": 12345678901234567890123}' in seen.raw
    assert seen.headers["accept-encoding"] == "identity"
    assert seen.headers["content-type"] == "application/json"
    assert "cookie" not in seen.headers
    assert json.loads(seen.raw) == {
        "model": "llama3.2:latest",
        "stream": True,
        "messages": [
            {"role": "system", "content": "Be brief"},
            {"role": "user", "content": "Look", "images": ["iVBOR/8="]},
            {
                "role": "assistant",
                "content": "",
                "thinking": "Hm",
                "tool_calls": [
                    {
                        "id": "c1",
                        "function": {
                            "index": 0,
                            "name": "weather",
                            "arguments": {"z": 1, "a": 12345678901234567890123},
                        },
                    }
                ],
            },
            {"role": "tool", "content": "sunny", "tool_name": "weather", "tool_call_id": "c1"},
        ],
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "weather",
                    "description": "Tells the weather",
                    "parameters": {"type": "object", "properties": {}},
                },
            }
        ],
        "format": {"type": "object"},
        "options": {
            "temperature": 0.0,
            "top_p": 0.5,
            "top_k": 3,
            "min_p": 0.1,
            "repeat_penalty": 1.1,
            "frequency_penalty": 0.2,
            "presence_penalty": 0.3,
            "seed": 0,
            "num_predict": 5,
            "stop": ["END"],
        },
        "keep_alive": -1,
        "think": False,
        "truncate": False,
    }


async def test_the_operators_context_is_sent_with_every_request_alike(
    ollama_peer: OllamaPeer,
) -> None:
    """T17"""
    ollama_peer.script("llama3.2", chunks([chat_end()]))
    async with serving(ollama_peer.url, num_ctx=8192) as service:
        await read(service)
        await read(service, ask("x" * 50_000, options=Options(max_tokens=9)))
        await read(service, ask(messages=(), prompt="y"))
    assert [seen.body["options"]["num_ctx"] for seen in ollama_peer.requests] == [8192] * 3


async def test_a_request_of_megabytes_arrives_whole(ollama_peer: OllamaPeer) -> None:
    """T10: with images a request is larger than any answer."""
    ollama_peer.script("llama3.2", chunks([chat_end()]))
    async with serving(ollama_peer.url) as service:
        await read(service, ask(messages=(say("user", "Look", images=(b"\x00" * 3_000_000,)),)))
    (image,) = ollama_peer.requests[0].body["messages"][0]["images"]
    assert image == "AAAA" * 1_000_000


@pytest.mark.parametrize(
    "request_fields",
    [
        {"response_format": ResponseFormat("json_schema", None)},
        {"think": "enormous"},
        {"keep_alive_s": float("inf")},
        {"messages": (say("assistant", "", tool_calls=(ToolCall("1", "f", "not json"),)),)},
        {"messages": (say("assistant", "", tool_calls=(ToolCall("1", "f", "[1]"),)),)},
        {"messages": (say("user", "\ud800"),)},
    ],
)
async def test_what_ollama_would_refuse_is_not_sent(
    ollama_peer: OllamaPeer, request_fields: dict[str, object]
) -> None:
    """T16"""
    async with serving(ollama_peer.url) as service:
        with pytest.raises(InvalidRequest):
            await read(service, ask(**request_fields))
    assert ollama_peer.requests == []


async def test_connections_are_used_again(ollama_peer: OllamaPeer) -> None:
    """The end of the message is awaited, so that the next request finds its connection."""
    lines = [chat_line("a"), chat_end()]
    async with serving(ollama_peer.url) as service:
        for script in (chunks(lines), chunks(lines), answer(200, b"".join(lines))):
            ollama_peer.script("llama3.2", script)
            await read(service)
    assert ollama_peer.connections == 1


async def test_lines_after_the_end_are_ignored(ollama_peer: OllamaPeer) -> None:
    """T10: there is one end, whatever follows it."""
    for extra in (chat_end(), b"rubbish\n"):
        ollama_peer.script("llama3.2", chunks([chat_end(), extra, extra]))
        async with serving(ollama_peer.url) as service:
            assert await read(service) == [Started(REF), Finished("stop", Usage(7, 3))]


async def test_the_first_line_comes_through_before_the_second_is_sent(
    ollama_peer: OllamaPeer,
) -> None:
    """T1: nothing is held back until more arrives."""
    more = asyncio.Event()
    ollama_peer.script("llama3.2", chunks([chat_line("a"), more, chat_end()]))
    async with (
        serving(ollama_peer.url) as service,
        aclosing(stream_of(service, ask(), REF)) as stream,
    ):
        assert await anext(stream) == Started(REF)
        assert await anext(stream) == TextDelta("a")
        more.set()
        assert isinstance(await anext(stream), Finished)
