"""POST /api/v1/stream: the grammar, the bytes, and when the status is decided."""

import anyio
import pytest

from gateway.core.errors import ProviderTimeout, ProviderUnavailable
from gateway.core.events import (
    Finished,
    ReasoningDelta,
    Started,
    Switched,
    TextDelta,
    ToolCallDelta,
    Usage,
    Waiting,
)
from gateway.core.messages import ToolCall
from gateway.core.names import ModelRef
from tests.integration.http.serving import serving
from tests.integration.http.sse_reader import HELLO, NATIVE, named, parse_frames
from tests.scripted_provider import ECHO, ScriptedProvider, answer


async def test_a_stream_follows_the_grammar_and_its_ids_rise_by_one() -> None:
    other = ModelRef("scripted", "other")
    script = [
        Waiting("queued", position=2),
        Waiting("loading", fraction=0.5, eta_s=1.5),
        Started(ECHO, prompt_tokens=3, queue_ms=4, load_ms=5),
        ReasoningDelta("hm"),
        TextDelta("he"),
        Switched(ECHO, other, "it broke"),
        TextDelta("llo"),
        ToolCallDelta(0, ToolCall("c1", "look", '{"at": 1}')),
        Finished("tool_calls", Usage(3, 4)),
    ]
    async with serving(ScriptedProvider(script)) as served:
        reply = await served.client.post(NATIVE, json=HELLO)
        session = await served.last_session()
    retry, *frames = parse_frames(reply.content)
    assert reply.status_code == 200
    assert retry.retry == "3000" and retry.data is None
    assert [frame.id for frame in frames] == [str(i) for i in range(1, 10)]
    assert [(frame.event, frame.json) for frame in frames[:-1]] == [
        ("waiting", {"stage": "queued", "position": 2}),
        ("waiting", {"stage": "loading", "fraction": 0.5, "eta_s": 1.5}),
        (
            "started",
            {
                "stream_id": session.opened.id,
                "model": "scripted/echo",
                "decision_id": session.opened.id,
            },
        ),
        ("delta", {"reasoning": "hm"}),
        ("delta", {"text": "he"}),
        ("switched", {"from": "scripted/echo", "to": "scripted/other", "reason": "it broke"}),
        ("delta", {"text": "llo"}),
        (
            "delta",
            {"tool_call": {"index": 0, "id": "c1", "name": "look", "arguments": '{"at": 1}'}},
        ),
    ]
    last = frames[-1]
    assert last.event == "finished"
    assert last.json["reason"] == "tool_calls"
    assert last.json["usage"] == {"prompt_tokens": 3, "completion_tokens": 4}
    timings = last.json["timings"]
    assert timings["queue_ms"] == 4 and timings["load_ms"] == 5
    assert 0 < timings["ttft_ms"] <= timings["total_ms"]


async def test_the_reply_may_be_neither_cached_nor_buffered_nor_compressed() -> None:
    async with serving(ScriptedProvider(answer("hi"))) as served:
        reply = await served.client.post(NATIVE, json=HELLO, headers={"X-Request-Id": "mine-1"})
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.headers["cache-control"] == "no-cache"
    assert reply.headers["x-accel-buffering"] == "no"
    assert "content-encoding" not in reply.headers
    assert reply.headers["x-request-id"] == "mine-1"
    assert b"\r" not in reply.content


@pytest.mark.parametrize(
    "text",
    [
        "a\r\nb\rc\nd",
        "\n\n",
        "data: x\n\nid: 7",
        "line\u2028para\u2029next\u0085vt\x0bff\x0c",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u00e9 e\u0301",
        "\ud800 half a pair \udfff",
        "\x00\x1b\x7f\ufeff",
    ],
)
async def test_any_text_arrives_as_it_was_made(text: str) -> None:
    async with serving(ScriptedProvider(answer(text, "!"))) as served:
        reply = await served.client.post(NATIVE, json=HELLO)
        whole = await served.client.post("/api/v1/generate", json=HELLO)
    deltas = [frame.json["text"] for frame in parse_frames(reply.content) if frame.event == "delta"]
    assert deltas == [text, "!"]
    assert whole.json()["text"] == text + "!"
    assert len(reply.text.splitlines()) == len(reply.content.split(b"\n")) - 1


async def test_a_failure_before_the_first_event_has_a_real_status() -> None:
    failure = ProviderUnavailable("scripted", "Nobody is there.")
    async with serving(ScriptedProvider([failure])) as served:
        reply = await served.client.post(NATIVE, json=HELLO)
    assert reply.status_code == 503
    assert reply.headers["retry-after"] == "2"
    assert reply.json() == {
        "error": {
            "code": "provider_unavailable",
            "message": "Nobody is there.",
            "hint": "Is the provider running and reachable?",
            "retryable": True,
            "request_id": reply.headers["x-request-id"],
        }
    }


async def test_a_failure_after_waiting_is_the_last_event() -> None:
    failure = ProviderTimeout("scripted", "Not a word.")
    async with serving(ScriptedProvider([Waiting("loading"), failure])) as served:
        reply = await served.client.post(NATIVE, json=HELLO)
        session = await served.last_session()
    frames = parse_frames(reply.content)
    assert reply.status_code == 200
    assert named(frames) == ["waiting", "failed"]
    assert frames[-1].json["code"] == "provider_timeout"
    assert frames[-1].json["request_id"] == reply.headers["x-request-id"]
    assert session.closed is not None and session.closed.error_code == "provider_timeout"


async def test_a_failure_in_the_middle_is_the_last_event_after_all_text() -> None:
    script = [Started(ECHO), TextDelta("he"), ProviderUnavailable("scripted", "It went away.")]
    async with serving(ScriptedProvider(script)) as served:
        reply = await served.client.post(NATIVE, json=HELLO)
    frames = parse_frames(reply.content)
    assert named(frames) == ["started", "delta", "failed"]
    assert frames[-1].json["message"] == "It went away."


async def test_a_defect_of_a_provider_reveals_nothing(caplog: pytest.LogCaptureFixture) -> None:
    script = [Started(ECHO), ZeroDivisionError("a secret")]
    async with serving(ScriptedProvider(script)) as served:
        reply = await served.client.post(NATIVE, json=HELLO)
    assert parse_frames(reply.content)[-1].json["code"] == "internal"
    assert "secret" not in reply.text
    assert "a secret" in caplog.text


async def test_a_silent_provider_gets_pings_before_its_first_event() -> None:
    gate = anyio.Event()
    provider = ScriptedProvider([gate, *answer("hi")])
    async with (
        serving(provider, ping_interval_s=0.05) as served,
        served.client.stream("POST", NATIVE, json=HELLO) as reply,
    ):
        chunks = reply.aiter_raw()
        body = await anext(chunks)
        while b": ping\n\n: ping\n\n" not in body:
            body += await anext(chunks)
        assert b"event:" not in body
        gate.set()
        async for chunk in chunks:
            body += chunk
    frames = [frame for frame in parse_frames(body) if frame.comment is None]
    assert named(frames) == ["started", "delta", "finished"]


async def test_events_that_are_ready_together_leave_in_one_write() -> None:
    async with (
        serving(ScriptedProvider(answer(*"abcdefgh"))) as served,
        served.client.stream("POST", NATIVE, json=HELLO) as reply,
    ):
        writes = [chunk async for chunk in reply.aiter_raw()]
    # One for what there was before the record of the start was written, one for the rest.
    assert len(writes) <= 3
    assert named(parse_frames(b"".join(writes))).count("delta") == 8


async def test_a_stream_that_somebody_else_cancels_says_so() -> None:
    provider = ScriptedProvider([Started(ECHO), TextDelta("a"), anyio.Event()])
    async with (
        serving(provider) as served,
        served.client.stream("POST", NATIVE, json=HELLO) as reply,
    ):
        body = b""
        async for chunk in reply.aiter_raw():
            body += chunk
            if b"delta" in chunk:
                [live] = served.gateway.streams._live.values()
                live.cancel()
    last = parse_frames(body)[-1]
    assert (last.event, last.json["reason"]) == ("finished", "cancelled")
    assert last.json["usage"]["completion_tokens"] == 1
