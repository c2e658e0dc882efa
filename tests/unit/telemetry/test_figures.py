"""Distributions, and how Prometheus reads them: checked with its own parser."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.telemetry.exposition import render
from gateway.telemetry.figures import Distribution, Family


def filled(*values: float) -> Distribution:
    distribution = Distribution((1.0, 2.5))
    for value in values:
        distribution.add(value)
    return distribution


def parsed(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_a_value_on_a_bound_is_in_its_bucket() -> None:
    assert filled(1.0, 1.1, 2.5, 2.6, 100).counts == [1, 2, 2]


def test_a_copy_does_not_go_on_counting() -> None:
    first = filled(1.0)
    copy = first.copy()
    first.add(5.0)
    assert (copy.count, copy.total, first.count, first.total) == (1, 1.0, 2, 6.0)


@pytest.mark.parametrize("accept", ["", "text/plain;version=0.0.4", "*/*"])
def test_what_is_rendered_is_what_prometheus_reads(accept: str) -> None:
    hist = Family("a_seconds", "histogram", "A.", ("model",))
    count = Family("b_total", "counter", "B.", ("what",))
    level = Family("c", "gauge", "C.")
    samples = [
        hist.of([(('m"\n',), filled(0.5, 2.0, 9.0))]),
        count.of([(("x",), 3)]),
        level.is_(True),
    ]
    body, content_type = render(samples, accept)
    assert content_type.startswith("text/plain; version=")
    found = parsed(body)
    name = ("model", 'm"\n')
    assert found["a_seconds_bucket", (("le", "1.0"), name)] == 1
    assert found["a_seconds_bucket", (("le", "2.5"), name)] == 2
    assert found["a_seconds_bucket", (("le", "+Inf"), name)] == 3
    assert found["a_seconds_count", (name,)] == 3
    assert found["a_seconds_sum", (name,)] == 11.5
    assert found["b_total", (("what", "x"),)] == 3
    assert found["c", ()] == 1
    assert found["process_open_fds", ()] > 2


def test_openmetrics_is_there_for_who_prefers_it() -> None:
    body, content_type = render([], "application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")
