"""Traces of real requests, as a collector receives them over OTLP."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio.to_thread
import pytest

from gateway.core.errors import ProviderUnavailable
from gateway.core.events import Started, TextDelta, Waiting
from gateway.core.ports import Provider
from gateway.providers.ollama import OllamaService
from gateway.telemetry.traces import OtlpTracer
from tests.integration.http.serving import Served, serving
from tests.integration.http.sse_reader import HELLO, NATIVE
from tests.integration.ollama_peer import OllamaPeer
from tests.integration.otlp_receiver import OtlpReceiver, Received, receiving
from tests.scripted_provider import ECHO, ScriptedProvider, answer

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CALLER = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}


@asynccontextmanager
async def traced(
    *providers: Provider, sample: float = 1.0, **options: Any
) -> AsyncIterator[tuple[Served, OtlpReceiver]]:
    """A gateway whose traces are all sent once the block's requests are done: use `sent`."""
    with receiving() as receiver:
        tracer = OtlpTracer(receiver.url, headers={"x-team": "gold"}, sample=sample, node="test")
        async with serving(
            *providers, tracer=tracer, traces_endpoint=receiver.url, **options
        ) as served:
            yield served, receiver
        await anyio.to_thread.run_sync(tracer.close)


async def sent(served: Served) -> None:
    """Have everything sent that has ended."""
    await served.gateway.streams.wait_idle()
    tracer = served.gateway.streams._tracer
    assert isinstance(tracer, OtlpTracer)
    await anyio.to_thread.run_sync(tracer._provider.force_flush)


def by_kind(receiver: OtlpReceiver, kind: str) -> list[Received]:
    return [span for span in receiver.spans if span.kind == kind]


async def test_a_request_is_a_span_of_its_caller_s_trace_and_has_its_attempt_in_it() -> None:
    script = [
        *(Waiting("queued", position=1), Waiting("loading"), Waiting("loading", fraction=0.5)),
        *(Started(ECHO, prompt_tokens=7, queue_ms=20.0, load_ms=3000.0), *answer("he", "llo")[1:]),
    ]
    async with traced(ScriptedProvider(script)) as (served, receiver):
        reply = await served.client.post(NATIVE, json=HELLO, headers=CALLER)
        await sent(served)
        [request], [attempt] = by_kind(receiver, "SERVER"), by_kind(receiver, "CLIENT")
        stages = by_kind(receiver, "INTERNAL")
        record = await served.last_session()
    assert (request.trace_id, request.parent_id) == (TRACE, PARENT)
    assert request.attributes["gateway.request.id"] == reply.headers["x-request-id"]
    assert request.attributes["gateway.decision.id"] == record.opened.id
    assert request.attributes["gen_ai.operation.name"] == "chat"
    assert request.attributes["gen_ai.response.model"] == "echo"
    assert request.attributes["gen_ai.usage.output_tokens"] == 2
    assert request.attributes["gen_ai.response.finish_reasons"] == ["stop"]
    assert not request.failed
    assert (attempt.trace_id, attempt.parent_id) == (TRACE, request.span_id)
    assert attempt.attributes["gen_ai.provider.name"] == "scripted"
    assert attempt.events["started"] == {"gateway.queue_ms": 20.0, "gateway.load_ms": 3000.0}
    assert "first token" in attempt.events
    assert [(stage.name, stage.parent_id) for stage in stages] == [
        ("queued", attempt.span_id),
        ("loading", attempt.span_id),
    ]
    assert receiver.resource["service.instance.id"] == "test"
    assert receiver.headers[0]["x-team"] == "gold"


async def test_each_attempt_is_a_span_and_says_how_it_failed() -> None:
    async def resting(seconds: float) -> None: ...

    provider = ScriptedProvider([ProviderUnavailable("scripted", "gone")])
    async with traced(provider, retry_sleep=resting) as (served, receiver):
        await served.client.post("/v1/chat/completions", json=HELLO)
        await sent(served)
    attempts = by_kind(receiver, "CLIENT")
    assert [span.attributes.get("error.type") for span in attempts] == ["provider_unavailable"] * 3
    [request] = by_kind(receiver, "SERVER")
    assert request.failed
    assert request.attributes["error.type"] == "provider_unavailable"
    assert request.attributes["gateway.face"] == "openai"
    assert {span.said for span in receiver.spans} == {""}, "messages may cite prompts"


async def test_the_next_server_is_told_of_the_attempt_and_others_of_nothing(
    ollama_peer: OllamaPeer,
) -> None:
    ollama_peer.add_model("llama3.2")
    service = OllamaService(ollama_peer.url)
    asked = HELLO | {"model": "ollama/llama3.2"}
    try:
        async with traced(service) as (served, receiver):
            await served.client.post(NATIVE, json=asked, headers=CALLER)
            await served.client.post(
                "/v1/embeddings", json={"model": "ollama/llama3.2", "input": "a"}, headers=CALLER
            )
            await sent(served)
            [attempt] = by_kind(receiver, "CLIENT")
            requests = by_kind(receiver, "SERVER")
        async with serving(service) as served:
            await served.client.post(NATIVE, json=asked, headers=CALLER)
    finally:
        await service.aclose()
    chats = [seen.headers for seen in ollama_peer.seen("/api/chat")]
    assert chats[0]["traceparent"] == f"00-{TRACE}-{attempt.span_id}-01"
    assert chats[0]["tracestate"] == "vendor=1"
    assert "traceparent" not in chats[1]
    [embedding] = [span for span in requests if span.name.startswith("embeddings")]
    [seen] = ollama_peer.seen("/api/embed")
    assert seen.headers["traceparent"] == f"00-{TRACE}-{embedding.span_id}-01"
    assert embedding.attributes["gen_ai.operation.name"] == "embeddings"


@pytest.mark.parametrize(("headers", "count"), [({}, 0), (CALLER, 1)])
async def test_who_is_not_in_the_sample_is_traced_if_his_caller_is(
    headers: dict[str, str], count: int
) -> None:
    async with traced(ScriptedProvider(answer("a")), sample=0.0) as (served, receiver):
        await served.client.post(NATIVE, json=HELLO, headers=headers)
        await sent(served)
    assert len(by_kind(receiver, "SERVER")) == count


@pytest.mark.parametrize("given", ["nonsense", f"00-{'0' * 32}-{PARENT}-01", "00-" + "a" * 500])
async def test_what_is_no_trace_is_left_alone(given: str) -> None:
    async with traced(ScriptedProvider(answer("a"))) as (served, receiver):
        reply = await served.client.post(NATIVE, json=HELLO, headers={"traceparent": given})
        await sent(served)
    assert reply.status_code == 200
    [request] = by_kind(receiver, "SERVER")
    assert request.parent_id == ""


async def test_a_stream_whose_reader_left_ends_its_spans() -> None:
    gate = anyio.Event()
    async with traced(ScriptedProvider([Started(ECHO), TextDelta("a"), gate])) as (served, got):
        async with served.client.stream("POST", NATIVE, json=HELLO) as reply:
            async for _ in reply.aiter_bytes():
                break
        await sent(served)
    [request] = by_kind(got, "SERVER")
    assert request.attributes["gen_ai.response.finish_reasons"] == ["cancelled"]
    assert not request.failed
    assert len(by_kind(got, "CLIENT")) == 1


async def test_requests_are_served_while_the_collector_is_away() -> None:
    tracer = OtlpTracer("http://127.0.0.1:9", headers={}, sample=1.0, node="test")
    provider = ScriptedProvider(answer("a"))
    async with serving(provider, tracer=tracer, traces_endpoint="http://127.0.0.1:9") as served:
        reply = await served.client.post("/api/v1/generate", json=HELLO)
        assert reply.json()["text"] == "a"
    with anyio.fail_after(20), suppress(OSError):
        await anyio.to_thread.run_sync(tracer.close)
