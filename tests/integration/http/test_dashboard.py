"""The dashboard and the alerts against what /metrics serves: names, labels, their values."""

import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.core.breaker import FAILURES
from gateway.core.errors import ProviderUnavailable
from gateway.core.loading import ModelStatus
from gateway.core.models import ModelStateChange, Resident
from gateway.core.names import ModelRef
from gateway.core.rotation import Step, StepState, Trigger
from gateway.core.sessions import RecordCounts
from gateway.core.states import ModelState, StreamEnd, UnloadReason
from gateway.engine.memory.budget import Share
from gateway.engine.memory.ledger import MemoryLedger
from tests.integration.http.promql import FUNCTIONS, parse
from tests.integration.http.serving import serving
from tests.integration.http.sse_reader import HELLO, NATIVE
from tests.integration.http.test_metrics import Scraped, scrape
from tests.scripted_provider import ECHO, ScriptedProvider, answer

DEPLOY = Path(__file__).parents[3] / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "model-gateway.json").read_text(encoding="utf-8"))
RULES = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text(encoding="utf-8"))
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"]]
PROMETHEUS_ADDS = {"instance", "job"}
AGGREGATED = re.compile(r"^(sum|max|histogram_quantile)\b")
VALUES = {
    "outcome": {end.value for end in StreamEnd},
    "state": {state.value for state in ModelState},
    "reason": {reason.value for reason in UnloadReason},
    "fate": set(RecordCounts.__struct_fields__),
    "error": {"", "shutting_down"},
}
"""What the queries may compare labels with, by label."""


def targets() -> list[tuple[str, str]]:
    """Return the query of each curve, and what it is called."""
    return [
        (target["expr"], target["legendFormat"])
        for panel in DASHBOARD["panels"]
        for target in panel.get("targets", ())
    ]


def expressions() -> list[str]:
    variables = [
        each["query"]["query"]
        for each in DASHBOARD["templating"]["list"]
        if each["type"] == "query"
    ]
    inner = [re.fullmatch(r"label_values\((\w+), (\w+)\)", text) for text in variables]
    return [
        *(query for query, _ in targets()),
        *(f"sum by ({found[2]}) ({found[1]})" for found in inner if found),
        *(alert["expr"] for alert in ALERTS),
    ]


class InMemory(ScriptedProvider):
    """One whose model is in memory."""

    async def status(self, ref: ModelRef | None = None) -> Sequence[ModelStatus]:
        return [ModelStatus(ECHO, ModelState.LOADED, memory_bytes=1, device="cpu")]


class Neighbour:
    """A tenant of the ledger with one idle model, and one that stays."""

    provider = "neighbour"

    def __init__(self, share: Share) -> None:
        self._share: Share | None = share

    def residents(self, device: str) -> list[Resident]:
        kept = [Resident(ModelRef("neighbour", "kept"), 1, leases=1)]
        return kept + ([Resident(ModelRef("neighbour", "idle"), 10**9)] if self._share else [])

    async def look(self) -> None: ...

    async def see_off(self, device: str) -> bool:
        return False

    async def evict(self, ref: ModelRef) -> None:
        assert self._share is not None
        self._share.close()
        self._share = None


async def evict_one(ledger: MemoryLedger) -> None:
    everything = ledger.budget("cpu").total_bytes
    idle = ModelRef("neighbour", "idle")
    ledger.join(Neighbour(await ledger.take(idle, "cpu", everything, wait_s=0)))
    await ledger.take(ECHO, "cpu", 1, wait_s=0)


@pytest.fixture
async def served_labels() -> AsyncIterator[dict[str, set[str]]]:
    """The labels of each sample of a gateway to which all kinds of things have happened."""
    refused = ProviderUnavailable("scripted", "gone")
    provider = InMemory(answer("he", "llo"))

    async def resting(seconds: float) -> None: ...

    async with serving(provider, max_streams=1, retry_sleep=resting) as served:
        await served.client.post(NATIVE, json=HELLO)
        await served.client.post("/v1/embeddings", json={"model": "scripted/echo", "input": "a"})
        provider.script = [refused]
        for _ in range(FAILURES):
            await served.client.post("/api/v1/generate", json=HELLO)
        gateway = served.gateway
        gateway.metrics.meter.fell_back("scripted", "no_room")
        gateway.metrics.meter.refused("overloaded")
        gateway.metrics.meter.continuations["scripted", "other"] += 1
        step = Step("s", "r", Trigger.HAND, "scripted/echo", 0.0, StepState.SUCCEEDED)
        gateway.metrics.meter.stepped(step)
        await evict_one(gateway.memory.ledger)
        for state in (ModelState.LOADING, ModelState.LOADED):
            gateway.metrics.meter.model_changed(ModelStateChange(ECHO, state))
        gone = ModelStateChange(ECHO, ModelState.UNLOADING, reason=UnloadReason.ROOM)
        gateway.metrics.meter.model_changed(gone)
        left = ModelStateChange(ModelRef("scripted", "left"), ModelState.LOADED)
        await gateway.model_states.apply("test", [left], 0.0)
        await gateway.tracker.reconcile()
        yield labels_of(await scrape(served))


def labels_of(found: Scraped) -> dict[str, set[str]]:
    return {
        name: {label for labels in rows for label, _ in labels} | PROMETHEUS_ADDS
        for name, rows in found.items()
    }


async def test_every_query_asks_for_what_there_is(served_labels: dict[str, set[str]]) -> None:
    assert len(expressions()) > 50
    for text in expressions():
        query = parse(text)
        assert query.metrics, text
        assert query.functions <= FUNCTIONS, text
        for name in query.metrics:
            assert name in served_labels, f"{name} is not served: {text}"
            unknown = query.matched.get(name, set()) - served_labels[name] - PROMETHEUS_ADDS
            assert not unknown, f"{name} has no {unknown}: {text}"
            unknown = query.grouped - served_labels[name] - PROMETHEUS_ADDS
            assert not unknown, f"{name} has no {unknown}: {text}"


async def test_names_of_curves_and_alerts_are_made_of_labels_that_are_left(
    served_labels: dict[str, set[str]],
) -> None:
    named = [(expr, re.findall(r"\{\{(\w+)\}\}", legend)) for expr, legend in targets()]
    named += [
        (alert["expr"], re.findall(r"\$labels\.(\w+)", json.dumps(alert["annotations"])))
        for alert in ALERTS
    ]
    for expr, labels in named:
        query = parse(expr)
        there = set(PROMETHEUS_ADDS).union(*(served_labels.get(name, ()) for name in query.metrics))
        if AGGREGATED.match(expr.strip()):
            there = query.grouped
        if "histogram_quantile" in query.functions:
            there -= {"le"}
        assert set(labels) <= there, expr


def test_values_that_are_compared_with_are_values_that_there_are() -> None:
    compared = [
        pair
        for text in expressions()
        for pair in re.findall(r'(\w+)\s*(?:!=|=(?!~))\s*"([^"]*)"', text)
    ]
    assert {label for label, _ in compared} <= VALUES.keys()
    assert [pair for pair in compared if pair[1] not in VALUES[pair[0]]] == []


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    panels: list[dict[str, Any]] = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [panel["gridPos"] for panel in panels]
    cells = [
        (x, y)
        for place in places
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells)), "panels lie over each other"
    assert max(x for x, _ in cells) < 24
    for panel in panels:
        assert panel["type"] == "row" or panel["description"]
    known = {each["name"] for each in DASHBOARD["templating"]["list"]} | {"__rate_interval"}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(panels)))
    assert used <= known


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool comes with Prometheus")
def test_the_alerts_fire_when_they_should_and_not_else() -> None:
    command = ["promtool", "test", "rules", "rules_test.yml"]
    told = subprocess.run(
        command, cwd=DEPLOY / "prometheus", capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stdout + told.stderr


def test_nobody_is_told_for_ever_of_a_provider_that_was_never_there() -> None:
    """What promtool tries, for machines that have none: the one alert looks back, too."""
    [away] = [alert["expr"] for alert in ALERTS if alert["alert"] == "GatewayProviderAway"]
    assert parse(away).functions == {"max_over_time"}
    assert " and " in away


def test_each_alert_says_what_it_is_and_how_bad() -> None:
    assert len({alert["alert"] for alert in ALERTS}) == len(ALERTS)
    for alert in ALERTS:
        assert alert["labels"]["severity"] in ("warning", "critical")
        assert alert["annotations"]["summary"]


@pytest.mark.parametrize(
    ("text", "metrics", "functions"),
    [
        ('sum by (a) (rate(m_total{b="x, c{"}[5m])) > 0', {"m_total"}, {"sum", "rate"}),
        ("up == 0", {"up"}, set()),
        ("m / on (a) group_left n", {"m", "n"}, set()),
        ("nosuch(m)", {"m"}, {"nosuch"}),
    ],
)
def test_queries_are_read_as_they_mean(text: str, metrics: set[str], functions: set[str]) -> None:
    query = parse(text)
    assert (query.metrics, query.functions) == (metrics, functions)
