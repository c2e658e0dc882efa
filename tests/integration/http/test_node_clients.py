"""The npm clients `openai` and `eventsource` against the gateway."""

import json
from typing import Any

import anyio.to_thread
import pytest

from gateway.core.errors import ProviderUnavailable
from gateway.core.events import Started, TextDelta, Waiting
from tests.integration.clients import node
from tests.integration.http.chaos_proxy import ChaosProxy
from tests.integration.http.serving import Served, serving
from tests.scripted_provider import ECHO, ScriptedProvider, answer

pytestmark = pytest.mark.usefixtures("node_modules")


async def _run(script: str, served: Served, *arguments: str) -> Any:
    printed = await anyio.to_thread.run_sync(node.run_script, script, served.url, *arguments)
    return json.loads(printed)


async def test_openai_node_lists_chats_streams_and_reads_errors() -> None:
    script = [Waiting("queued", position=2), *answer("hel\r\n", "lo\u2028")]
    async with serving(ScriptedProvider(script)) as served:
        seen = await _run("openai.mjs", served)
    assert seen["models"] == ["scripted/echo"]
    assert seen["model"] == "scripted/echo"
    assert seen["answer"] == "hel\r\nlo\u2028"
    *chunks, usage = seen["chunks"]
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == seen["answer"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert (usage["choices"], usage["usage"]["total_tokens"]) == ([], 5)
    assert seen["notFound"] == {
        "name": "NotFoundError",
        "status": 404,
        "code": "model_not_found",
    }


async def test_openai_node_sees_a_failure_in_the_middle() -> None:
    script = [Started(ECHO), TextDelta("he"), ProviderUnavailable("scripted", "It went away.")]
    async with serving(ScriptedProvider(script)) as served:
        seen = await _run("openai-failure.mjs", served)
    assert seen["text"] == "he"
    assert seen["error"]["name"] == "APIError"
    assert seen["error"]["code"] == "provider_unavailable"
    assert "It went away." in seen["error"]["message"]


async def test_eventsource_sees_the_terminal_event_and_stops() -> None:
    provider = ScriptedProvider(answer("hel\r\n", "lo\u2028"))
    async with serving(provider) as served:
        seen = await _run("eventsource.mjs", served)
    assert [event["name"] for event in seen["events"]] == ["started", "delta", "delta", "finished"]
    assert [event["id"] for event in seen["events"]] == ["1", "2", "3", "4"]
    assert "".join(e["data"].get("text", "") for e in seen["events"]) == "hel\r\nlo\u2028"
    assert seen["opened"] == 1 and "error" not in seen
    assert len(provider.requests) == 1


async def test_eventsource_sees_failed_as_an_event_and_stops() -> None:
    script = [Started(ECHO), TextDelta("he"), ProviderUnavailable("scripted", "It went away.")]
    provider = ScriptedProvider(script)
    async with serving(provider) as served:
        seen = await _run("eventsource.mjs", served)
    assert [event["name"] for event in seen["events"]] == ["started", "delta", "failed"]
    assert seen["events"][-1]["data"]["message"] == "It went away."
    assert len(provider.requests) == 1


async def test_eventsource_connects_again_after_cuts_and_misses_nothing() -> None:
    words = [f"{number} \u00fc\r\n\u2028" for number in range(40)]
    async with (
        serving(ScriptedProvider(answer(*words))) as served,
        ChaosProxy(served.port, iter([1300, 1700])).running() as proxy,
    ):
        seen = await _run("eventsource_resume.mjs", served, proxy.url, "close")
        assert proxy.cut_count == 2
    assert [event["id"] for event in seen["events"]] == [str(n) for n in range(1, 43)]
    assert "".join(event["data"].get("text", "") for event in seen["events"]) == "".join(words)
    assert seen["events"][-1]["name"] == "finished"
    assert (seen["opened"], seen["lost"]) == (3, 2)


async def test_eventsource_that_does_not_close_is_told_to_connect_no_more() -> None:
    async with serving(ScriptedProvider(answer("hello"))) as served:
        seen = await _run("eventsource_resume.mjs", served, served.url)
    assert [event["name"] for event in seen["events"]] == ["started", "delta", "finished"]
    assert (seen["opened"], seen["code"]) == (1, 204)
