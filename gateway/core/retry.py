"""Whether and when a failed request is tried again, and by whom. Pure: chance is handed in."""

from collections.abc import Callable

from gateway.core.errors import (
    ContextLengthExceeded,
    EngineFailed,
    GatewayError,
    IncompleteStream,
    ModelCorrupt,
    ModelLoadFailed,
    ModelNotFound,
    ModelTooLarge,
    ModelUnloaded,
    NoRoom,
    Overloaded,
    ProviderError,
    ProviderProtocolError,
    ProviderResting,
    ProviderTimeout,
    ProviderUnavailable,
)

MAX_TRIES = 3
"""Of one candidate, the first included."""
BASE_S = 0.05
LONGEST_S = 1.0
"""Nobody is kept waiting for longer than this: who says to wait longer is heard by the caller."""
BUDGET_SHARE = 0.2
BUDGET_MOST = 10.0

_ELSEWHERE = (
    ProviderError,
    ContextLengthExceeded,
    EngineFailed,
    ModelLoadFailed,
    ModelNotFound,
    ModelTooLarge,
    ModelUnloaded,
    NoRoom,
    Overloaded,
)
_AGAIN = (ProviderUnavailable, IncompleteStream)
_BROKEN = (
    EngineFailed,
    IncompleteStream,
    ModelLoadFailed,
    ProviderProtocolError,
    ProviderTimeout,
)


class RetryBudget:
    """A fifth of the requests may be tried again, and a few at once: an outage is not amplified."""

    def __init__(self) -> None:
        self._tokens = BUDGET_MOST

    def earn(self) -> None:
        """A request came."""
        self._tokens = min(self._tokens + BUDGET_SHARE, BUDGET_MOST)

    def spend(self) -> bool:
        """Tell whether one more may be tried again."""
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


def helps_elsewhere(error: GatewayError) -> bool:
    """Tell whether another model or provider might do what this one did not."""
    return isinstance(error, _ELSEWHERE)


def blames_model(error: GatewayError) -> bool:
    """Tell whether the error says that the model, or what runs it, does not work.

    That its files are damaged is known without a try: there is nothing to be left alone, and the
    reason is to be told each time.
    """
    return isinstance(error, _BROKEN) and not isinstance(error, ModelCorrupt)


def retry_in_s(error: GatewayError, tried: int, draw: Callable[[], float]) -> float | None:
    """Return how long to wait before the same candidate is asked again; None: it is not.

    `tried` is how often it was. Only for errors of which it is known that nothing was said, and
    that may pass. The wait is drawn from a range that doubles (full jitter), and is never less
    than what the provider asked for. Source: AWS, "Exponential backoff and jitter".
    """
    if tried >= MAX_TRIES or not isinstance(error, _AGAIN) or isinstance(error, ProviderResting):
        return None
    asked_s = error.retry_after_s or 0.0
    if asked_s > LONGEST_S:
        return None
    return max(asked_s, draw() * min(BASE_S * 4.0 ** (tried - 1), LONGEST_S))
