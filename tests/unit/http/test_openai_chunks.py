"""Chunks are put together of ready pieces: each is JSON, whatever the names and texts are."""

import json
import time
from typing import Any

import pytest

from gateway.core.events import (
    Event,
    Finished,
    Generation,
    ReasoningDelta,
    Started,
    Switched,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from gateway.core.messages import ToolCall
from gateway.core.names import ModelRef
from gateway.core.sessions import SessionOpened
from gateway.http.encoding import encode_json
from gateway.http.openai_chunks import (
    DONE,
    ChatChunks,
    CompletionChunks,
    describe_chat,
    describe_completion,
)
from gateway.services.live import LiveStream
from gateway.services.streams import choose_limits
from gateway.settings import Settings

ODD = ModelRef("huggingface", 'o/%b"x\u2028')
OTHER = ModelRef("ollama", "other:latest")
TEXT = 'quoted ""\u2028 and \ud800'
LOGPROBS = (TokenLogprob("a", b"a", -0.5, (TokenLogprob("b", b"b", -1.0),)),)
CALL = ToolCall("c1", "look", '{"a":1}')
USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}

Chunks = ChatChunks | CompletionChunks


@pytest.fixture
async def live() -> LiveStream:
    return LiveStream(
        SessionOpened("s1", "r", "n", "m", 0.0),
        caller="",
        limits=choose_limits(Settings()),
        left=lambda _: None,
        clock=time.monotonic,
    )


def read(frames: bytes) -> list[dict[str, Any]]:
    assert len(frames.decode().splitlines()) == 2 * frames.count(b"\n\n")
    parts = frames.removesuffix(DONE).split(b"\n\n")[:-1]
    return [json.loads(part.removeprefix(b"data: ")) for part in parts]


def say(chunks: Chunks, *events: Event) -> list[dict[str, Any]]:
    return read(chunks.encode(events))


async def test_the_deltas_of_a_chat_are_chunks_of_their_model(live: LiveStream) -> None:
    chunks = ChatChunks(live, includes_usage=False)
    said = say(
        chunks,
        Started(ODD),
        TextDelta(TEXT),
        TextDelta(""),
        TextDelta(TEXT, 1, LOGPROBS),
        ReasoningDelta(TEXT),
        ToolCallDelta(0, CALL),
        Switched(ODD, OTHER, "engine_failed"),
        TextDelta(TEXT),
    )
    assert [each["choices"][0]["delta"] for each in said] == [
        {"role": "assistant", "content": ""},
        {"content": TEXT},
        {"content": TEXT},
        {"reasoning_content": TEXT},
        {
            "tool_calls": [
                {
                    "index": 0,
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "look", "arguments": '{"a":1}'},
                }
            ]
        },
        {},
        {"content": TEXT},
    ]
    assert [each["model"] for each in said] == [str(ODD)] * 5 + [str(OTHER)] * 2
    assert said[5]["switched"] == {"from": str(ODD), "to": str(OTHER), "reason": "engine_failed"}
    assert said[2]["choices"][0]["logprobs"]["content"][0]["top_logprobs"][0]["token"] == "b"
    for each in said:
        assert (each["id"], each["object"]) == ("chatcmpl-s1", "chat.completion.chunk")
        assert each["choices"][0]["finish_reason"] is None
        assert "usage" not in each


@pytest.mark.parametrize("kind", [ChatChunks, CompletionChunks])
async def test_usage_is_in_every_chunk_and_told_by_the_last(
    kind: type[ChatChunks] | type[CompletionChunks], live: LiveStream
) -> None:
    chunks = kind(live, includes_usage=True)
    said = say(chunks, Started(ODD), TextDelta("x"), Finished("length", Usage(3, 4), True))
    assert [each["usage"] for each in said] == [None, None, None, USAGE]
    assert said[-1]["choices"] == []
    assert said[-2]["choices"][0]["finish_reason"] == "length"
    assert [each.get("truncated") for each in said] == [None, None, True, None]


async def test_the_end_of_a_stream_that_no_model_began_names_none(live: LiveStream) -> None:
    (end,) = say(ChatChunks(live, includes_usage=False), Finished("cancelled", Usage()))
    assert end["model"] == ""
    assert end["choices"][0]["finish_reason"] == "length"


async def test_the_texts_of_a_completion_count_on(live: LiveStream) -> None:
    chunks = CompletionChunks(live, includes_usage=False)
    said = say(chunks, Started(ODD), TextDelta("x" + TEXT), TextDelta("a", 1, LOGPROBS))
    texts = [each["choices"][0] for each in said]
    assert [each["text"] for each in texts] == ["", "x" + TEXT, "a"]
    assert texts[2]["logprobs"]["text_offset"] == [len("x" + TEXT)]
    assert {each["object"] for each in said} == {"text_completion"}


async def test_a_whole_answer_has_what_there_is_to_tell(live: LiveStream) -> None:
    usage = Usage(3, 4)
    plain = Generation(ODD, TEXT, "", (), "stop", usage)
    chat = json.loads(encode_json(describe_chat(live, plain)))
    created = chat.pop("created")
    assert abs(created - time.time()) < 60
    assert chat == {
        "id": "chatcmpl-s1",
        "object": "chat.completion",
        "model": str(ODD),
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": TEXT, "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": USAGE,
    }
    switches = (Switched(ODD, OTHER, "engine_failed"),)
    rich = Generation(ODD, "", "why", (CALL,), "tool_calls", usage, LOGPROBS, True, switches)
    chat = json.loads(encode_json(describe_chat(live, rich)))
    message = chat["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == (None, "why")
    assert message["tool_calls"][0]["function"]["name"] == "look"
    assert chat["truncated"] is True
    assert chat["switched"][0]["to"] == str(OTHER)
    text = json.loads(encode_json(describe_completion(live, rich)))
    assert text["choices"][0]["logprobs"]["tokens"] == ["a"]
