"""`/metrics` as Prometheus reads it, over real requests."""

import re
from collections import Counter
from pathlib import Path

import anyio
import httpx
from prometheus_client.parser import text_string_to_metric_families

from gateway.core.errors import ProviderUnavailable
from gateway.core.events import Started, TextDelta
from gateway.core.keys import KeyScope
from gateway.core.loading import ModelStatus
from gateway.core.states import ModelState
from gateway.services.keys import KeyOrder
from tests.integration.http.serving import Served, serving
from tests.integration.http.sse_reader import HELLO, NATIVE
from tests.scripted_provider import ECHO, ScriptedProvider, answer

DOCS = Path(__file__).parents[3] / "docs" / "operations.md"
HEADER = re.compile(r"^# TYPE (\S+) \S+$", re.MULTILINE)


Scraped = dict[str, Counter[frozenset[tuple[str, str]]]]


async def scrape(served: Served) -> Scraped:
    """Return the value of each sample by its name and labels."""
    reply = await served.client.get("/metrics")
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("text/plain; version=")
    found: Scraped = {}
    for family in text_string_to_metric_families(reply.text):
        for sample in family.samples:
            values = found.setdefault(sample.name, Counter())
            values[frozenset(sample.labels.items())] += sample.value  # type: ignore[assignment]
    return found


def labels(**values: str) -> frozenset[tuple[str, str]]:
    return frozenset(values.items())


def request(**values: str) -> frozenset[tuple[str, str]]:
    usual = {"operation": "chat", "provider": "scripted", "model": "echo", "error": ""}
    return labels(**(usual | values))


async def settled(served: Served) -> None:
    await served.gateway.streams.wait_idle()


async def test_requests_tokens_and_times_are_counted_by_face_model_and_outcome() -> None:
    provider = ScriptedProvider(answer("he", "llo"))
    async with serving(provider) as served:
        await served.client.post(NATIVE, json=HELLO)
        await served.client.post("/api/v1/generate", json=HELLO)
        await served.client.post("/v1/chat/completions", json=HELLO)
        provider.script = [Started(ECHO), TextDelta("a"), ProviderUnavailable("scripted", "gone")]
        await served.client.post(NATIVE, json=HELLO)
        await served.client.post("/v1/embeddings", json={"model": "scripted/echo", "input": "a"})
        await settled(served)
        found = await scrape(served)
    requests = found["gateway_requests_total"]
    assert requests[request(face="native", outcome="stop")] == 2
    assert requests[request(face="openai", outcome="stop")] == 1
    failed = request(face="native", outcome="error", error="provider_unavailable")
    assert requests[failed] == 1
    embedded = request(face="openai", outcome="stop", operation="embeddings")
    assert requests[embedded] == 1
    model = labels(
        gen_ai_operation_name="chat",
        gen_ai_provider_name="scripted",
        gen_ai_request_model="echo",
    )
    assert found["gen_ai_server_time_to_first_token_seconds_count"][model] == 4
    assert found["gen_ai_server_time_per_output_token_seconds_count"][model] == 3
    tokens = found["gen_ai_client_token_usage_sum"]
    assert tokens[model | labels(gen_ai_token_type="output")] == 3 * 2 + 1
    durations = found["gen_ai_server_request_duration_seconds_count"]
    assert sum(durations.values()) == 5
    assert found["gateway_http_responses_total"][labels(status="200")] == 5
    assert found["gateway_records_total"][labels(fate="lost")] == 0
    assert found["gateway_provider_up"][labels(provider="scripted")] == 1


async def test_decisions_that_are_written_and_that_are_lost_are_counted() -> None:
    async with serving(ScriptedProvider(answer("hi"))) as served:
        embed = {"model": "scripted/echo", "input": "a"}  # of which there is no other record
        for _ in range(3):
            await served.client.post("/v1/embeddings", json=embed)
        decisions = served.gateway.decisions
        assert await decisions.flush(5)
        decisions.log.lost += 2
        found = await scrape(served)
    fates = found["gateway_decisions_total"]
    assert (fates[labels(fate="written")], fates[labels(fate="lost")]) == (3, 2)
    assert found["gateway_decisions_pending"][labels()] == 0


async def test_what_is_open_and_what_is_refused_is_told() -> None:
    provider = ScriptedProvider([Started(ECHO), anyio.Event()])
    async with (
        serving(provider, max_streams=1) as served,
        served.client.stream("POST", NATIVE, json=HELLO),
    ):
        await served.client.post(NATIVE, json=HELLO)
        found = await scrape(served)
    assert found["gateway_streams_open"][labels()] == 1
    assert found["gateway_refusals_total"][labels(error="overloaded")] == 1


async def test_a_provider_that_hangs_delays_the_figures_by_a_second_at_most() -> None:
    class Hanging(ScriptedProvider):
        async def status(self, ref=None):  # type: ignore[no-untyped-def]
            await anyio.sleep_forever()

    async with serving(Hanging()) as served:
        with anyio.fail_after(10):
            found = await scrape(served)
    assert found["gateway_provider_up"][labels(provider="scripted")] == 0


async def test_one_that_waits_to_be_loaded_is_shown_and_a_defect_elsewhere_hides_nothing() -> None:
    class Waiting(ScriptedProvider):
        async def status(self, ref=None):  # type: ignore[no-untyped-def]
            return [ModelStatus(ECHO, ModelState.LOADING, queued=7)]

    class Broken(ScriptedProvider):
        async def status(self, ref=None):  # type: ignore[no-untyped-def]
            raise ValueError("a defect")

    async with serving(Waiting(), Broken(name="other")) as served:
        found = await scrape(served)
    assert found["gateway_model_queued"][labels(provider="scripted", model="echo")] == 7
    assert found["gateway_provider_up"][labels(provider="other")] == 0


async def test_a_scrape_needs_a_key_with_the_scope_manage_once_there_are_keys() -> None:
    async with serving(ScriptedProvider()) as served:
        keys = served.gateway.keys
        statuses = []
        for scopes in ((KeyScope.INFER,), (KeyScope.MANAGE,)):
            _, text = await keys.create(KeyOrder("k", scopes))
            reply = await served.client.get("/metrics", headers={"authorization": f"Bearer {text}"})
            statuses.append(reply.status_code)
        anonymous: httpx.Response = await served.client.get("/metrics")
    assert statuses == [403, 200]
    assert anonymous.status_code == 401


async def test_every_name_is_documented_and_every_documented_name_is_there() -> None:
    async with serving(ScriptedProvider(answer("a", "b"))) as served:
        text = (await served.client.get("/metrics")).text
    exported = set(HEADER.findall(text))
    table = DOCS.read_text(encoding="utf-8").split("## Metrics\n")[1].split("\n## ")[0]
    first_cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert exported == {name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)}
