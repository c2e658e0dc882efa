"""MetricsService: every figure that the gateway exports, gathered when somebody looks.

What is counted as it happens is in `telemetry.meter`; the rest is asked for here. The names are
OpenTelemetry's for generative AI where it has one.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence

import anyio
import msgspec

from gateway.core.breaker import BreakerState
from gateway.core.errors import GatewayError
from gateway.core.ledger import MemoryReport
from gateway.core.loading import ModelStatus
from gateway.core.ports import Provider
from gateway.services.decision_log import DecisionLog
from gateway.services.embeddings import EmbeddingService
from gateway.services.feed import ModelFeed
from gateway.services.health import HealthBoard
from gateway.services.memory import MemoryService
from gateway.services.recorder import SessionRecorder
from gateway.services.streams import StreamService
from gateway.services.tracker import ModelStateTracker
from gateway.telemetry.figures import Family, Row, Sample
from gateway.telemetry.meter import MAX_MODELS, Meter
from gateway.telemetry.watchdog import Stalls

logger = logging.getLogger(__name__)

STATUS_WAIT_S = 1.0
"""How long a look waits for a provider to tell which models it has in memory."""

_BREAKER_LEVELS: dict[BreakerState, int] = {"closed": 0, "half_open": 1, "open": 2}
_MODEL = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")

REQUEST_DURATION = Family(
    "gen_ai_server_request_duration_seconds",
    "histogram",
    "From the acceptance of a request to its end.",
    (*_MODEL, "error_type"),
)
FIRST_TOKEN = Family(
    "gen_ai_server_time_to_first_token_seconds",
    "histogram",
    "From the acceptance of a request to the first token of its answer.",
    _MODEL,
)
TOKEN_TIME = Family(
    "gen_ai_server_time_per_output_token_seconds",
    "histogram",
    "The mean gap between the tokens of an answer that became whole.",
    _MODEL,
)
GAPS = Family(
    "gen_ai_client_operation_time_per_output_chunk_seconds",
    "histogram",
    "The gaps between the pieces of an answer, as its stream took them.",
    _MODEL,
)
TOKENS = Family(
    "gen_ai_client_token_usage",
    "histogram",
    "Tokens of a request.",
    (*_MODEL, "gen_ai_token_type"),
)
REQUESTS = Family(
    "gateway_requests_total",
    "counter",
    "Requests that were let in, by how they ended.",
    ("operation", "face", "provider", "model", "outcome", "error"),
)
REFUSALS = Family(
    "gateway_refusals_total", "counter", "Requests for work that were not let in.", ("error",)
)
CONTINUATIONS = Family(
    "gateway_continuations_total",
    "counter",
    "Answers that broke and were gone on with, by the providers before and after.",
    ("source", "target"),
)
ROTATION_STEPS = Family(
    "gateway_rotation_steps_total",
    "counter",
    "Steps of rotations that this gateway took, by how they ended.",
    ("rotation", "outcome"),
)
RESPONSES = Family(
    "gateway_http_responses_total", "counter", "Replies that began, by status.", ("status",)
)
QUEUE = Family(
    "gateway_queue_seconds", "histogram", "The wait of an answered request in a queue.", _MODEL
)
LOAD = Family(
    "gateway_load_wait_seconds",
    "histogram",
    "The wait of an answered request for its model to be loaded.",
    _MODEL,
)
RETRIES = Family(
    "gateway_retries_total",
    "counter",
    "Requests that were sent to the same model again, by what had failed.",
    ("provider", "error"),
)
FALLBACKS = Family(
    "gateway_fallbacks_total",
    "counter",
    "Requests that went on to the next candidate, by what had failed.",
    ("provider", "error"),
)
BREAKER_STATE = Family(
    "gateway_breaker_state",
    "gauge",
    "0: asked as usual, 1: one may try, 2: left alone. A model is here while it is not 0.",
    ("provider", "model"),
)
BREAKER_OPENINGS = Family(
    "gateway_breaker_openings_total",
    "counter",
    "How often a provider, or a model of it, began to be left alone.",
    ("provider",),
)
OPEN_STREAMS = Family("gateway_streams_open", "gauge", "Streams that run.")
OPEN_EMBEDDINGS = Family("gateway_embeddings_open", "gauge", "Embedding requests that run.")
SUBSCRIPTIONS = Family("gateway_subscriptions_open", "gauge", "Subscriptions to model states.")
TRANSITIONS = Family(
    "gateway_model_transitions_total",
    "counter",
    "States that models entered: LOADED is a load, NOT_LOADED an unload or eviction.",
    ("provider", "state"),
)
LOADS = Family(
    "gateway_model_load_seconds",
    "histogram",
    "From the decision to load a model to its being loaded, the wait for room included.",
    ("provider", "model"),
)
UNLOADS = Family(
    "gateway_model_unloads_total",
    "counter",
    "Models that began to leave memory, by why; room is an eviction.",
    ("provider", "reason"),
)
DRIFT = Family(
    "gateway_state_drift_total",
    "counter",
    "States in the database that were not the truth, and were repaired.",
    ("provider", "recorded", "found"),
)
PROVIDER_UP = Family(
    "gateway_provider_up",
    "gauge",
    "Whether a provider told its models when it was asked just now.",
    ("provider",),
)
MODEL_BYTES = Family(
    "gateway_model_memory_bytes",
    "gauge",
    "What a model holds in memory, its cache included.",
    ("provider", "model", "device"),
)
MODEL_LEASES = Family(
    "gateway_model_leases", "gauge", "Requests that use a model.", ("provider", "model")
)
MODEL_QUEUED = Family(
    "gateway_model_queued",
    "gauge",
    "Requests that wait for a model to be loaded.",
    ("provider", "model"),
)
RECORDS = Family(
    "gateway_records_total", "counter", "Session records by what became of them.", ("fate",)
)
RECORDS_PENDING = Family("gateway_records_pending", "gauge", "Records that are in memory only.")
DECISIONS = Family(
    "gateway_decisions_total",
    "counter",
    "Decisions that the records of streams do not tell, by what became of them.",
    ("fate",),
)
DECISIONS_PENDING = Family(
    "gateway_decisions_pending", "gauge", "Decisions that wait in memory for the database."
)
JOURNAL_BYTES = Family("gateway_journal_bytes", "gauge", "What the journal takes on its disk.")
DATABASE_UP = Family("gateway_database_up", "gauge", "Whether the database takes records.")
JOURNAL_UP = Family("gateway_journal_up", "gauge", "Whether the journal would take records.")
STALLS = Family(
    "gateway_event_loop_stall_seconds",
    "histogram",
    "How long the event loop stood still, of times over GATEWAY_STALL_WARN_S.",
)
WORST_STALL = Family(
    "gateway_event_loop_stall_max_seconds", "gauge", "The longest stall since the start."
)
EVICTIONS = Family(
    "gateway_evictions_total",
    "counter",
    "Models that made room, by what for, over all providers.",
    ("provider", "reason"),
)
MEMORY_BUDGET = Family(
    "gateway_memory_budget_bytes",
    "gauge",
    "What the models of all providers may take on a device.",
    ("device",),
)
MEMORY_USED = Family(
    "gateway_memory_used_bytes",
    "gauge",
    "What the models of a provider hold on a device, reservations included.",
    ("device", "provider"),
)
MEMORY_OVERHEAD = Family(
    "gateway_memory_overhead_bytes",
    "gauge",
    "What the gateway's libraries took of a device once, for all models.",
    ("device",),
)
MEMORY_RESERVED = Family(
    "gateway_memory_reserved_bytes",
    "gauge",
    "What is set aside on a device for models on their way into memory.",
    ("device",),
)

FAMILIES = (
    *(REQUEST_DURATION, FIRST_TOKEN, TOKEN_TIME, GAPS, TOKENS, REQUESTS, REFUSALS, RESPONSES),
    *(QUEUE, LOAD, RETRIES, FALLBACKS, BREAKER_STATE, BREAKER_OPENINGS, OPEN_STREAMS),
    *(OPEN_EMBEDDINGS, SUBSCRIPTIONS, TRANSITIONS, LOADS, UNLOADS, DRIFT, PROVIDER_UP, MODEL_BYTES),
    *(MODEL_LEASES, MODEL_QUEUED, RECORDS, RECORDS_PENDING, JOURNAL_BYTES, DATABASE_UP),
    *(JOURNAL_UP, STALLS, WORST_STALL, CONTINUATIONS, ROTATION_STEPS),
    *(EVICTIONS, MEMORY_BUDGET, MEMORY_USED, MEMORY_OVERHEAD, MEMORY_RESERVED),
    *(DECISIONS, DECISIONS_PENDING),
)
"""All there are."""


class MetricsService:
    """Gathers the figures of one gateway."""

    def __init__(
        self,
        meter: Meter,
        stalls: Stalls,
        *,
        providers: Mapping[str, Provider],
        streams: StreamService,
        embeddings: EmbeddingService,
        feed: ModelFeed,
        recorder: SessionRecorder,
        health: HealthBoard,
        tracker: ModelStateTracker,
        memory: MemoryService,
        decisions: DecisionLog,
    ) -> None:
        self.meter = meter
        self.stalls = stalls
        self._providers = providers
        self._streams = streams
        self._embeddings = embeddings
        self._feed = feed
        self._recorder = recorder
        self._health = health
        self._tracker = tracker
        self._memory = memory
        self._decisions = decisions

    async def gather(self) -> list[Sample]:
        """Return one sample of each family; takes as long as the slowest provider, 1 s at most."""
        statuses = await self._ask_providers()
        return [
            *self._of_requests(),
            *self._of_routing(),
            *self._of_lifecycle(),
            OPEN_STREAMS.is_(self._streams.live_count),
            OPEN_EMBEDDINGS.is_(self._embeddings.open_count),
            SUBSCRIPTIONS.is_(self._feed.subscriber_count),
            *_of_models(statuses),
            *self._of_records(),
            STALLS.is_(self.stalls.seconds.copy()),
            WORST_STALL.is_(self.stalls.worst_s),
            *_of_memory(self._memory.ledger.report()),
        ]

    def _of_requests(self) -> Iterator[Sample]:
        meter = self.meter
        yield REQUEST_DURATION.of((key, each.copy()) for key, each in meter.durations.items())
        series = meter.series.items()
        yield FIRST_TOKEN.of((key, each.first_token.copy()) for key, each in series)
        yield TOKEN_TIME.of((key, each.token_time.copy()) for key, each in series)
        yield GAPS.of((key, each.gaps.copy()) for key, each in series)
        yield TOKENS.of(
            ((*key, kind), figure.copy())
            for key, each in series
            for kind, figure in (("input", each.input_tokens), ("output", each.output_tokens))
        )
        yield QUEUE.of((key, each.queue.copy()) for key, each in series)
        yield LOAD.of((key, each.load.copy()) for key, each in series)
        yield REQUESTS.of((key, account.count) for key, account in meter.accounts.items())
        yield REFUSALS.of(((code,), count) for code, count in meter.refusals.items())
        yield CONTINUATIONS.of(meter.continuations.items())
        yield ROTATION_STEPS.of(meter.rotation_steps.items())
        yield RESPONSES.of(((str(status),), count) for status, count in meter.responses.items())

    def _of_routing(self) -> Iterator[Sample]:
        meter, health = self.meter, self._health
        yield RETRIES.of(meter.retries.items())
        yield FALLBACKS.of(meter.fallbacks.items())
        yield BREAKER_STATE.of(_breaker_rows(health))
        yield BREAKER_OPENINGS.of(((name,), count) for name, count in health.openings.items())

    def _of_lifecycle(self) -> Iterator[Sample]:
        meter = self.meter
        yield TRANSITIONS.of(meter.transition_rows())
        yield LOADS.of((key, each.copy()) for key, each in meter.loads.items())
        yield UNLOADS.of(meter.unloads.items())
        yield DRIFT.of(self._tracker.drift.items())

    def _of_records(self) -> Iterator[Sample]:
        counts = msgspec.structs.asdict(self._recorder.counts)
        yield RECORDS.of(((fate,), count) for fate, count in counts.items())
        yield RECORDS_PENDING.is_(self._recorder.pending)
        yield JOURNAL_BYTES.is_(self._recorder.journal_bytes)
        yield DATABASE_UP.is_(self._recorder.healthy)
        yield JOURNAL_UP.is_(self._recorder.journal_healthy)
        log = self._decisions
        yield DECISIONS.of([(("written",), log.written), (("lost",), log.lost)])
        yield DECISIONS_PENDING.is_(log.pending_count)

    async def _ask_providers(self) -> dict[str, Sequence[ModelStatus] | None]:
        """Return what each provider says of its models; None where it does not say in time."""
        found: dict[str, Sequence[ModelStatus] | None] = dict.fromkeys(self._providers)

        async def ask(name: str, provider: Provider) -> None:
            try:
                found[name] = await provider.status()
            except GatewayError:
                pass  # the metric of it says so
            except Exception:
                logger.exception("%s failed to tell its models' states", name)

        with anyio.move_on_after(STATUS_WAIT_S):
            async with anyio.create_task_group() as tasks:
                for name, provider in self._providers.items():
                    tasks.start_soon(ask, name, provider)
        return found


def _breaker_rows(health: HealthBoard) -> Iterator[Row]:
    models = 0
    for key, state in health.breakers().items():
        if isinstance(key, str):
            yield (key, ""), _BREAKER_LEVELS[state]
        elif models < MAX_MODELS:
            models += 1
            yield (key.provider, key.qualified_model), _BREAKER_LEVELS[state]


def _of_models(statuses: Mapping[str, Sequence[ModelStatus] | None]) -> Iterator[Sample]:
    models = [model for found in statuses.values() for model in found or ()]
    yield PROVIDER_UP.of(((name,), found is not None) for name, found in statuses.items())
    yield MODEL_BYTES.of(
        ((*_names(model), model.device or ""), model.memory_bytes)
        for model in models
        if model.memory_bytes
    )
    yield MODEL_LEASES.of(_rows(models, "leases"))
    yield MODEL_QUEUED.of(_rows(models, "queued"))


def _of_memory(report: MemoryReport) -> Iterator[Sample]:
    devices = report.devices
    yield EVICTIONS.of(((each.provider, each.reason), each.count) for each in report.evictions)
    yield MEMORY_BUDGET.of(
        ((each.device,), each.budget_bytes) for each in devices if each.budget_bytes is not None
    )
    yield MEMORY_USED.of(
        ((each.device, provider), held)
        for each in devices
        for provider, held in each.used_by_provider.items()
    )
    yield MEMORY_OVERHEAD.of(((each.device,), each.overhead_bytes) for each in devices)
    yield MEMORY_RESERVED.of(((each.device,), each.reserved_bytes) for each in devices)


def _rows(models: Sequence[ModelStatus], field: str) -> Iterator[Row]:
    return ((_names(model), getattr(model, field)) for model in models if _is_busy(model))


def _is_busy(model: ModelStatus) -> bool:
    """Tell whether it holds memory, or somebody waits for it to."""
    return bool(model.memory_bytes or model.leases or model.queued)


def _names(model: ModelStatus) -> tuple[str, str]:
    return model.ref.provider, model.ref.qualified_model
