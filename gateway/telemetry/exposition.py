"""Figures as Prometheus reads them. Knows the text forms, and none of the figures."""

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from gateway.telemetry.figures import Distribution, Sample


def render(samples: Sequence[Sample], accept: str) -> tuple[bytes, str]:
    """Return the samples, and what the system knows of this process, in the form that `accept`
    prefers; and its media type. Blocking: thousands of lines take tens of milliseconds.

    Source: Prometheus, exposition formats.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once(samples))
    ProcessCollector(registry=registry)
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class _Once(Collector):
    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = samples

    def collect(self) -> Iterable[Metric]:
        return map(_metric, self._samples)


def _metric(sample: Sample) -> Metric:
    family = sample.family
    if family.kind == "histogram":
        histogram = HistogramMetricFamily(family.name, family.help, labels=family.labels)
        for labels, figure in sample.rows:
            assert isinstance(figure, Distribution)
            histogram.add_metric(labels, _buckets(figure), figure.total)
        return histogram
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = kind(family.name, family.help, labels=family.labels)
    for labels, figure in sample.rows:
        assert not isinstance(figure, Distribution)
        metric.add_metric(labels, figure)
    return metric


def _buckets(figure: Distribution) -> list[tuple[str, float]]:
    """Return the buckets as Prometheus has them: each holds all below it, too."""
    bounds = [*map(floatToGoString, figure.bounds), "+Inf"]
    so_far, buckets = 0, []
    for bound, count in zip(bounds, figure.counts, strict=True):
        so_far += count
        buckets.append((bound, float(so_far)))
    return buckets
