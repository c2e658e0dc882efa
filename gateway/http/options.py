"""Sampling options and keep_alive as they are written in bodies."""

import re

import msgspec

from gateway.core.errors import InvalidRequest
from gateway.core.messages import Options
from gateway.core.options import require_in_range

_FOREVER_S = 1e9

# Source: Go's time.ParseDuration, which Ollama's keep_alive follows.
_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_NUMBER = r"(?:\d{1,12}(?:\.\d{0,12})?|\.\d{1,12})"
_PIECE = re.compile(rf"({_NUMBER})(ns|us|µs|ms|s|m|h)", re.ASCII)
_DURATION = re.compile(rf"([+-]?)((?:{_NUMBER}(?:ns|us|µs|ms|s|m|h))+)", re.ASCII)
_SECONDS = re.compile(rf"[+-]?{_NUMBER}", re.ASCII)


class OptionsBody(msgspec.Struct, kw_only=True):
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    logprobs: bool | int | None = None
    top_logprobs: int | None = None
    logit_bias: dict[str, float] | None = None


def to_options(body: OptionsBody | None, prefix: str = "") -> Options:
    """Return the options; raises InvalidRequest with the range of the first that is outside."""
    body = body or OptionsBody()
    options = Options(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        frequency_penalty=body.frequency_penalty,
        presence_penalty=body.presence_penalty,
        seed=body.seed,
        max_tokens=body.max_tokens,
        stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        stop_ids=tuple(body.stop_token_ids or ()),
        logprobs=_to_logprobs(body),
        logit_bias=_to_logit_bias(body.logit_bias, prefix),
    )
    require_in_range(options, prefix)
    return options


def first_of(*sources: OptionsBody | None) -> OptionsBody:
    """Return options where each value is that of the first source that has it."""
    given = [source for source in sources if source is not None]
    if len(given) == 1:
        return given[0]
    values = {
        name: next((v for s in given if (v := getattr(s, name)) is not None), None)
        for name in OptionsBody.__struct_fields__
    }
    return OptionsBody(**values)


def parse_keep_alive(value: float | str | None) -> float | None:
    """Return seconds; a negative number is for ever. Text is a number or as Go writes durations."""
    if value is None:
        return None
    seconds = _parse_duration(value) if isinstance(value, str) else value
    return max(-1.0, min(seconds, _FOREVER_S))


def _parse_duration(text: str) -> float:
    if _SECONDS.fullmatch(text):
        return float(text)
    match = _DURATION.fullmatch(text)
    if match is None:
        raise InvalidRequest(
            f"'keep_alive' is '{text[:40]}', which is no duration.",
            hint="Write a number of seconds, or for example 5m, 1h30m or -1.",
            param="keep_alive",
        )
    seconds = sum(float(n) * _UNITS_S[unit] for n, unit in _PIECE.findall(match[2]))
    return -seconds if match[1] == "-" else seconds


def _to_logprobs(body: OptionsBody) -> int | None:
    """Return how many alternatives are asked for, in either of OpenAI's ways to ask.

    A chat says yes or no, and how many in `top_logprobs`; a plain completion says how many.
    """
    asked = body.logprobs
    if asked is False or (asked is None and body.top_logprobs is None):
        return None
    number = 0 if asked is None or asked is True else asked
    return number if body.top_logprobs is None else body.top_logprobs


def _to_logit_bias(bias: dict[str, float] | None, prefix: str) -> tuple[tuple[int, float], ...]:
    found: dict[int, float] = {}
    for key, value in (bias or {}).items():
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise InvalidRequest(
                f"'logit_bias' has '{key[:40]}', which is no token.", param=prefix + "logit_bias"
            )
        found[int(key)] = value
    return tuple(found.items())
