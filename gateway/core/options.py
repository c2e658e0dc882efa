"""The ranges that sampling options may have, whichever way they come. Pure."""

from collections.abc import Sequence

from gateway.core.errors import InvalidRequest
from gateway.core.messages import NO_OPTIONS, Options

MAX_STOPS = 16
MAX_TOKEN_IDS = 1024
"""As many tokens may be named by `logit_bias`, and by `stop_token_ids`."""
MAX_LOGPROBS = 20
MAX_BIAS = 100
_INT32 = 2**31 - 1

# Lowest and highest value allowed.
_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "top_k": (0, _INT32),
    "min_p": (0, 1),
    "repetition_penalty": (0.01, 10),
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
    "max_tokens": (1, _INT32),
    "seed": (-(2**63), 2**64 - 1),
}
_NOT_ZERO = frozenset({"top_p"})


def require_in_range(options: Options, prefix: str = "") -> None:
    """Raise InvalidRequest with the range of the first option that is outside; `prefix` is what
    stands before its name in the request."""
    if options == NO_OPTIONS:
        return
    for name, (low, high) in _RANGES.items():
        value = getattr(options, name)
        if value is None or (low <= value <= high and not (value == 0 and name in _NOT_ZERO)):
            continue
        span = f"above 0 and at most {high}" if name in _NOT_ZERO else f"from {low} to {high}"
        raise InvalidRequest(f"'{name}' is {value}; it must be {span}.", param=prefix + name)
    if len(options.stop) > MAX_STOPS:
        raise InvalidRequest(
            f"'stop' has {len(options.stop)} strings; {MAX_STOPS} are allowed.",
            param=prefix + "stop",
        )
    if "" in options.stop:
        raise InvalidRequest("'stop' holds an empty string.", param=prefix + "stop")
    _require_few_tokens("stop_token_ids", options.stop_ids, prefix)
    _require_few_tokens("logit_bias", options.logit_bias, prefix)
    _require_biases(options.logit_bias, prefix + "logit_bias")
    if options.logprobs is not None and not 0 <= options.logprobs <= MAX_LOGPROBS:
        raise InvalidRequest(
            f"'logprobs' is {options.logprobs}; it must be from 0 to {MAX_LOGPROBS}.",
            param=prefix + "logprobs",
        )


def _require_few_tokens(name: str, given: Sequence[object], prefix: str) -> None:
    if len(given) > MAX_TOKEN_IDS:
        raise InvalidRequest(
            f"'{name}' has {len(given)} tokens; {MAX_TOKEN_IDS} are allowed.", param=prefix + name
        )


def _require_biases(biases: Sequence[tuple[int, float]], param: str) -> None:
    for token, bias in biases:
        if not -MAX_BIAS <= bias <= MAX_BIAS:
            raise InvalidRequest(
                f"'logit_bias' of token {token} is {bias}; "
                f"it must be from -{MAX_BIAS} to {MAX_BIAS}.",
                param=param,
            )
