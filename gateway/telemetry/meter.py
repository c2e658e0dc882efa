"""Counts what the gateway does. On the event loop only, and once for each request, after its end:
what a request costs must not show in what it measures.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

from gateway.core.events import Usage
from gateway.core.gaps import GAP_BOUNDS, Gaps
from gateway.core.models import ModelStateChange
from gateway.core.names import ModelRef
from gateway.core.rotation import Step
from gateway.core.sessions import SessionClosed
from gateway.core.states import ModelState
from gateway.telemetry.figures import Distribution, Row

# Source: OpenTelemetry, semantic conventions for generative AI, metrics. Small models on a
# processor are faster than the smallest time for a token there: three bounds are added below it.
DURATION_BOUNDS = (
    *(0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92),
)
FIRST_TOKEN_BOUNDS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
)
TOKEN_TIME_BOUNDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5),
)
TOKEN_BOUNDS = tuple(4.0**power for power in range(14))
WAIT_BOUNDS = (0.001, 0.01, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)

MAX_MODELS = 100
"""Models that are told apart: more names than these are one, so that nobody can fill memory, here
or in Prometheus, by asking for models that are not there."""
OTHER = "other"

CHAT, EMBEDDINGS = "chat", "embeddings"


MAX_UNCOUNTED = 250
"""Streams that ended and are not counted yet. Together they cost less: the way to each figure is
gone once, and is cold by the time that one more ends."""

EndedStream = tuple[str, SessionClosed, Gaps]
"""The face of a stream, its terminal record and its gaps."""


class ModelSeries:
    """The distributions of one model and one kind of work. Times are seconds."""

    __slots__ = (
        *("first_token", "gaps", "input_tokens", "load", "output_tokens", "queue", "token_time"),
    )

    def __init__(self) -> None:
        self.first_token = Distribution(FIRST_TOKEN_BOUNDS)
        self.token_time = Distribution(TOKEN_TIME_BOUNDS)
        self.gaps = Distribution(GAP_BOUNDS)
        self.queue = Distribution(WAIT_BOUNDS)
        self.load = Distribution(WAIT_BOUNDS)
        self.input_tokens = Distribution(TOKEN_BOUNDS)
        self.output_tokens = Distribution(TOKEN_BOUNDS)

    def add(self, streams: Sequence[EndedStream]) -> None:
        """Count streams that began to answer and ended in the same way."""
        timings = [closed.timings for _, closed, _ in streams]
        usages = [closed.usage for _, closed, _ in streams]
        self.first_token.add_all([(each.ttft_ms or 0.0) / 1000 for each in timings])
        self.queue.add_all([each.queue_ms / 1000 for each in timings])
        self.load.add_all([each.load_ms / 1000 for each in timings])
        self.input_tokens.add_all([each.prompt_tokens for each in usages])
        self.output_tokens.add_all([each.completion_tokens for each in usages])
        gaps = [gaps for _, _, gaps in streams]
        counts = map(sum, zip(*[each.counts for each in gaps], strict=True))
        self.gaps.merge(list(counts), sum(each.total_s for each in gaps))
        if streams[0][1].error_code is None:
            self.token_time.add_all([*_token_times(streams)])


class Account:
    """What one kind of request adds up in; those of one model and error share the durations."""

    __slots__ = ("count", "duration", "series")

    def __init__(self, duration: Distribution, series: ModelSeries) -> None:
        self.count = 0
        self.duration = duration
        self.series = series


class Meter:
    """Fulfils core.ports.SessionMeter and RouteMeter; what it counted is read by
    `services.metrics`."""

    def __init__(
        self, *, max_models: int = MAX_MODELS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._accounts: dict[tuple[str, str, str, str, str, str], Account] = {}
        self._durations: dict[tuple[str, str, str, str], Distribution] = {}
        self._series: dict[tuple[str, str, str], ModelSeries] = {}
        self.refusals: Counter[str] = Counter()
        self.responses: Counter[int] = Counter()
        self.transitions: Counter[tuple[str, str]] = Counter()
        self._continuations: Counter[tuple[str, str]] = Counter()
        self._uncounted: list[EndedStream] = []
        self.rotation_steps: Counter[tuple[str, str]] = Counter()
        self.unloads: Counter[tuple[str, str]] = Counter()
        """By provider and reason."""
        self.retries: Counter[tuple[str, str]] = Counter()
        self.fallbacks: Counter[tuple[str, str]] = Counter()
        """Both by the provider that failed, and the code of its error."""
        self.loads: dict[tuple[str, str], Distribution] = {}
        """How long loads took, by provider and model."""
        self._load_begun: dict[ModelRef, float] = {}
        self._clock = clock
        self._max_models = max_models
        self._models: set[tuple[str, str]] = set()

    @property
    def accounts(self) -> Mapping[tuple[str, str, str, str, str, str], Account]:
        """By operation, face, provider, model, outcome and error code."""
        self._count()
        return self._accounts

    @property
    def durations(self) -> Mapping[tuple[str, str, str, str], Distribution]:
        """By operation, provider, model and error code."""
        self._count()
        return self._durations

    @property
    def series(self) -> Mapping[tuple[str, str, str], ModelSeries]:
        """By operation, provider and model."""
        self._count()
        return self._series

    @property
    def continuations(self) -> Counter[tuple[str, str]]:
        """By the providers that broke off and went on."""
        self._count()
        return self._continuations

    def stream_ended(self, face: str, closed: SessionClosed, gaps: Gaps) -> None:
        """Count a stream by what its terminal record says, before anybody reads the figures."""
        self._uncounted.append((face, closed, gaps))
        if len(self._uncounted) >= MAX_UNCOUNTED:
            self._count()

    def _count(self) -> None:
        streams, self._uncounted = self._uncounted, []
        alike: dict[tuple[object, ...], list[EndedStream]] = {}
        for stream in streams:
            face, closed, _ = stream
            has_begun = closed.timings.ttft_ms is not None
            kind = face, closed.provider, closed.model, closed.end, closed.error_code, has_begun
            alike.setdefault(kind, []).append(stream)
            if closed.served_by:
                pairs = pairwise(name.partition("/")[0] for name in closed.served_by)
                self._continuations.update(pairs)
        for group in alike.values():
            self._count_alike(group)

    def _count_alike(self, streams: Sequence[EndedStream]) -> None:
        face, closed, _ = streams[0]
        has_begun = closed.timings.ttft_ms is not None
        name = self._label(closed.provider, closed.model, is_known=has_begun)
        account = self._account((CHAT, face, *name, closed.end.value, closed.error_code or ""))
        account.count += len(streams)
        account.duration.add_all([each.timings.total_ms / 1000 for _, each, _ in streams])
        if has_begun:
            account.series.add(streams)

    def embedded(
        self, face: str, ref: ModelRef | None, usage: Usage | None, error: str, seconds: float
    ) -> None:
        provider, model = (ref.provider, ref.qualified_model) if ref else (None, None)
        name = self._label(provider, model, is_known=usage is not None)
        outcome = "stop" if usage else "error" if error else "cancelled"
        account = self._account((EMBEDDINGS, face, *name, outcome, error))
        account.count += 1
        account.duration.add(seconds)
        if usage is not None:
            account.series.input_tokens.add(usage.prompt_tokens)

    def retried(self, provider: str, error: str) -> None:
        self.retries[provider, error] += 1

    def fell_back(self, provider: str, error: str) -> None:
        self.fallbacks[provider, error] += 1

    def refused(self, code: str) -> None:
        self.refusals[code] += 1

    def responded(self, status: int) -> None:
        self.responses[status] += 1

    def stepped(self, step: Step) -> None:
        """Count a step of a rotation that ended."""
        self.rotation_steps[step.rotation, step.state.value.lower()] += 1

    def model_changed(self, change: ModelStateChange) -> None:
        """Count a transition of a model. A core.ports.ModelObserver."""
        provider, state = change.ref.provider, change.state
        self.transitions[provider, state.value] += 1
        if change.reason is not None:
            self.unloads[provider, change.reason.value] += 1
        if state is ModelState.LOADING:
            self._load_begun[change.ref] = self._clock()
            return
        begun = self._load_begun.pop(change.ref, None)
        if begun is not None and state is ModelState.LOADED:
            name = self._label(provider, change.ref.qualified_model, is_known=True)
            loads = self.loads.setdefault(name, Distribution(WAIT_BOUNDS))
            loads.add(self._clock() - begun)

    def transition_rows(self) -> Iterator[Row]:
        """Return how often each state was entered, of every provider that has models."""
        for provider in {provider for provider, _ in self.transitions}:
            for state in ModelState:
                yield (provider, state.value), self.transitions[provider, state.value]

    def _account(self, key: tuple[str, str, str, str, str, str]) -> Account:
        account = self._accounts.get(key)
        if account is None:
            operation, _, provider, model, _, error = key
            account = self._accounts[key] = Account(
                self._durations.setdefault(
                    (operation, provider, model, error), Distribution(DURATION_BOUNDS)
                ),
                self._series.setdefault((operation, provider, model), ModelSeries()),
            )
        return account

    def _label(self, provider: str | None, model: str | None, *, is_known: bool) -> tuple[str, str]:
        """Return the labels of a model. It gets its own when it first answers: what has not may be
        a name that somebody made up."""
        name = provider or "", model or OTHER
        if name not in self._models:
            if not is_known or len(self._models) >= self._max_models:
                return name[0], OTHER
            self._models.add(name)
        return name


def _token_times(streams: Iterable[EndedStream]) -> Iterator[float]:
    """Return the mean gap between the tokens of each answer that has more than one."""
    for _, closed, _ in streams:
        gaps, timings = closed.usage.completion_tokens - 1, closed.timings
        if gaps > 0:
            yield (timings.total_ms - (timings.ttft_ms or 0.0)) / 1000 / gaps
