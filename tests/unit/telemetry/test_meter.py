"""What is counted of a request, under which names, and that names are bounded."""

from msgspec.structs import replace

from gateway.core.events import Timings, Usage
from gateway.core.gaps import Gaps
from gateway.core.models import ModelStateChange
from gateway.core.names import ModelRef
from gateway.core.sessions import SessionClosed
from gateway.core.states import ModelState, StreamEnd, UnloadReason
from gateway.telemetry.figures import Distribution
from gateway.telemetry.meter import MAX_UNCOUNTED, Meter, ModelSeries


def closed(
    model: str = "m",
    end: StreamEnd = StreamEnd.STOP,
    *,
    error: str | None = None,
    usage: Usage = Usage(7, 5),  # noqa: B008
    ttft_ms: float | None = 100.0,
) -> SessionClosed:
    timings = Timings(queue_ms=20, load_ms=3000, ttft_ms=ttft_ms, total_ms=500.0)
    return SessionClosed("id", "p", model, end, 0.0, usage, timings, error)


def counts(meter: Meter) -> dict[tuple[str, ...], int]:
    return {key: account.count for key, account in meter.accounts.items()}


def test_an_answer_is_counted_under_its_model() -> None:
    meter = Meter()
    meter.stream_ended("openai", closed(), Gaps())
    assert counts(meter) == {("chat", "openai", "p", "m", "stop", ""): 1}
    series = meter.series["chat", "p", "m"]
    assert series.first_token.total == 0.1
    assert series.queue.total == 0.02
    assert series.load.total == 3.0
    assert (series.input_tokens.total, series.output_tokens.total) == (7, 5)
    # Four gaps lie between five tokens.
    assert series.token_time.total == (0.5 - 0.1) / 4
    assert meter.durations["chat", "p", "m", ""].total == 0.5


def test_answers_that_were_gone_on_with_are_counted_by_their_providers() -> None:
    meter = Meter()
    meter.stream_ended("native", replace(closed(), served_by=("a/m", "b/m", "b/n")), Gaps())
    meter.stream_ended("native", replace(closed(), served_by=("a/x/y", "b/m")), Gaps())
    assert meter.continuations == {("a", "b"): 2, ("b", "b"): 1}


def test_a_cut_answer_counts_its_tokens_and_no_pace() -> None:
    meter = Meter()
    meter.stream_ended("native", closed(end=StreamEnd.ERROR, error="provider_unavailable"), Gaps())
    series = meter.series["chat", "p", "m"]
    assert series.output_tokens.total == 5
    assert series.token_time.count == 0
    assert meter.durations["chat", "p", "m", "provider_unavailable"].count == 1


def test_one_token_has_no_gap() -> None:
    meter = Meter()
    meter.stream_ended("native", closed(usage=Usage(7, 1)), Gaps())
    assert meter.series["chat", "p", "m"].token_time.count == 0


def test_a_name_that_never_answered_is_no_label() -> None:
    meter = Meter()
    for number in range(1000):
        made_up = closed(f"m{number}", StreamEnd.ERROR, error="model_not_found", ttft_ms=None)
        meter.stream_ended("native", made_up, Gaps())
    assert counts(meter) == {("chat", "native", "p", "other", "error", "model_not_found"): 1000}
    assert len(meter.series) == 1


def test_a_model_that_answered_keeps_its_label_when_it_fails() -> None:
    meter = Meter()
    meter.stream_ended("native", closed(), Gaps())
    meter.stream_ended("native", closed(end=StreamEnd.ERROR, error="no_room", ttft_ms=None), Gaps())
    assert counts(meter)["chat", "native", "p", "m", "error", "no_room"] == 1


def test_beyond_the_bound_models_are_one() -> None:
    meter = Meter(max_models=2)
    for name in ("a", "b", "c", "d", "a"):
        meter.stream_ended("native", closed(name), Gaps())
    counted = {key[3]: count for key, count in counts(meter).items()}
    assert counted == {"a": 2, "b": 1, "other": 2}


def test_embeddings_count_by_how_they_ended() -> None:
    meter = Meter()
    ref = ModelRef("p", "e")
    meter.embedded("openai", ref, Usage(7), "", 0.5)
    meter.embedded("openai", None, None, "no_room", 0.1)
    meter.embedded("native", None, None, "", 0.1)
    assert counts(meter) == {
        ("embeddings", "openai", "p", "e", "stop", ""): 1,
        ("embeddings", "openai", "", "other", "error", "no_room"): 1,
        ("embeddings", "native", "", "other", "cancelled", ""): 1,
    }
    assert meter.series["embeddings", "p", "e"].input_tokens.total == 7


def test_the_gaps_of_an_answer_are_those_of_its_model() -> None:
    meter, gaps = Meter(), Gaps()
    for seconds in (0.03, 0.03, 3.0):
        gaps.add(seconds)
    meter.stream_ended("native", closed(), gaps)
    meter.stream_ended("native", closed(), gaps)
    figure = meter.series["chat", "p", "m"].gaps
    assert (figure.count, round(figure.total, 6)) == (6, 6.12)
    assert figure.counts[figure.bounds.index(0.04)] == 4


def test_a_load_is_timed_until_the_model_is_loaded() -> None:
    now = 0.0
    meter = Meter(clock=lambda: now)
    ref, other = ModelRef("p", "m"), ModelRef("p", "torn")
    for each in (ref, other):
        meter.model_changed(ModelStateChange(each, ModelState.LOADING))
    now = 7.0
    meter.model_changed(ModelStateChange(ref, ModelState.LOADED))
    meter.model_changed(ModelStateChange(other, ModelState.FAILED))
    assert {name: (each.count, each.total) for name, each in meter.loads.items()} == {
        ("p", "m"): (1, 7.0)
    }


def test_unloads_are_told_apart_by_their_reason() -> None:
    meter, ref = Meter(), ModelRef("p", "m")
    for reason in (UnloadReason.ROOM, UnloadReason.IDLE, UnloadReason.ROOM, None):
        meter.model_changed(ModelStateChange(ref, ModelState.UNLOADING, reason=reason))
    assert meter.unloads == {("p", "room"): 2, ("p", "idle"): 1}
    assert meter.transitions["p", "UNLOADING"] == 4


def test_streams_that_were_counted_together_are_what_each_alone_would_be() -> None:
    together, alone = Meter(), Meter()
    gaps = Gaps()
    gaps.add(0.03)
    streams = [
        closed("a"),
        closed("b", usage=Usage(3, 1)),
        closed("a", usage=Usage(100, 50), ttft_ms=7.0),
        closed("a", StreamEnd.ERROR, error="engine_failed"),
        closed("a", StreamEnd.CANCELLED, ttft_ms=None),
        replace(closed("a"), served_by=("p/a", "q/a")),
    ] * MAX_UNCOUNTED
    for stream in streams:
        together.stream_ended("native", stream, gaps)
        alone.stream_ended("native", stream, gaps)
        assert alone.accounts
    assert figures(together) == figures(alone)
    assert sum(counts(together).values()) == len(streams)


def figures(meter: Meter) -> dict[str, object]:
    return {
        "accounts": counts(meter),
        "durations": {key: of(each) for key, each in meter.durations.items()},
        "series": {
            key: [of(getattr(each, name)) for name in ModelSeries.__slots__]
            for key, each in meter.series.items()
        },
        "continuations": meter.continuations,
    }


def of(figure: Distribution) -> tuple[list[int], float]:
    return figure.counts, round(figure.total, 6)
