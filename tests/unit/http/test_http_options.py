"""Durations, ranges and precedence of sampling options."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import InvalidRequest
from gateway.http.options import OptionsBody, first_of, parse_keep_alive, to_options


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (None, None),
        (0, 0),
        (12.5, 12.5),
        (-5, -1),
        (1e300, 1e9),
        ("-1", -1),
        ("300", 300),
        ("0.5", 0.5),
        ("5m", 300),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("90s", 90),
        ("250ms", 0.25),
        (".5s", 0.5),
        ("-1m", -1),
        ("+2s", 2),
        ("0", 0),
    ],
)
def test_keep_alive_is_seconds_or_a_duration(
    written: float | str | None, seconds: float | None
) -> None:
    assert parse_keep_alive(written) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    "written", ["", "m", "5 m", "5x", "1h30", "nan", "inf", "1e3", "--1", "\u0665s"]
)
def test_what_is_no_duration_is_refused(written: str) -> None:
    with pytest.raises(InvalidRequest, match="no duration"):
        parse_keep_alive(written)


@given(st.text(max_size=30))
def test_no_text_breaks_the_parser(written: str) -> None:
    try:
        seconds = parse_keep_alive(written)
    except InvalidRequest:
        return
    assert seconds is not None and -1 <= seconds <= 1e9


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("temperature", [0, 2], [-0.1, 2.1]),
        ("top_p", [0.01, 1], [0, -1, 1.1]),
        ("top_k", [0, 100], [-1, 2**31]),
        ("min_p", [0, 1], [-0.1, 1.1]),
        ("repetition_penalty", [0.1, 10], [0, -1, 11]),
        ("frequency_penalty", [-2, 2], [-2.1, 2.1]),
        ("presence_penalty", [-2, 2], [-2.1, 2.1]),
        ("max_tokens", [1, 2**31 - 1], [0, -1, 2**31]),
        ("seed", [-(2**63), 2**64 - 1], [-(2**63) - 1, 2**64]),
    ],
)
def test_each_option_has_a_range(name: str, inside: list[float], outside: list[float]) -> None:
    for value in inside:
        assert getattr(to_options(OptionsBody(**{name: value})), name) == value  # type: ignore[arg-type]
    for value in outside:
        with pytest.raises(InvalidRequest, match=name) as caught:
            to_options(OptionsBody(**{name: value}), "options.")  # type: ignore[arg-type]
        assert caught.value.param == f"options.{name}"


def test_the_first_source_that_has_a_value_gives_it() -> None:
    first, second = OptionsBody(temperature=0), OptionsBody(temperature=1, stop=["x"])
    merged = first_of(first, None, second)
    assert (merged.temperature, merged.stop, merged.seed) == (0, ["x"], None)


def test_stops_are_a_tuple_whatever_they_were_written_as() -> None:
    assert to_options(OptionsBody(stop="x")).stop == ("x",)
    assert to_options(OptionsBody(stop=["x", "y"])).stop == ("x", "y")
    assert to_options(None).stop == ()


@pytest.mark.parametrize(
    ("logprobs", "top", "wanted"),
    [
        (None, None, None),
        (False, None, None),
        (False, 5, None),
        (True, None, 0),
        (True, 5, 5),
        (None, 5, 5),
        (0, None, 0),
        (3, None, 3),
        (3, 20, 20),
    ],
)
def test_log_probabilities_are_asked_for_in_either_of_openai_s_ways(
    logprobs: bool | int | None, top: int | None, wanted: int | None
) -> None:
    assert to_options(OptionsBody(logprobs=logprobs, top_logprobs=top)).logprobs == wanted


@pytest.mark.parametrize("count", [-1, 21])
def test_too_many_log_probabilities_are_refused(count: int) -> None:
    with pytest.raises(InvalidRequest, match="from 0 to 20") as caught:
        to_options(OptionsBody(logprobs=count), "options.")
    assert caught.value.param == "options.logprobs"


def test_biases_and_stop_ids_are_tokens() -> None:
    options = to_options(OptionsBody(logit_bias={"7": -100, "8": 0.5}, stop_token_ids=[3, 4]))
    assert options.logit_bias == ((7, -100), (8, 0.5))
    assert options.stop_ids == (3, 4)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (OptionsBody(logit_bias={"seven": 1}), "no token"),
        (OptionsBody(logit_bias={"-7": 1}), "no token"),
        (OptionsBody(logit_bias={"\u0667": 1}), "no token"),
        (OptionsBody(logit_bias={"7": 101}), "from -100 to 100"),
        (OptionsBody(logit_bias={"7": float("nan")}), "from -100 to 100"),
        (OptionsBody(logit_bias={str(n): 1 for n in range(1025)}), "1024 are allowed"),
        (OptionsBody(stop_token_ids=[1] * 1025), "1024 are allowed"),
    ],
)
def test_what_is_no_bias_is_refused(body: OptionsBody, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        to_options(body)
