"""The Hub's rate limits: remembers what its replies say, and refuses to ask before the time.

Sources: the IETF draft of RateLimit headers as the Hub sends them (`"api";r=0;t=55`), RFC 9110 for
Retry-After.
"""

import math
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TypeAlias
from urllib.parse import urlsplit

from huggingface_hub.utils import parse_ratelimit_headers

from gateway.core.errors import HubRateLimited

MAX_WAIT_S = 900.0
"""Whatever a header says: the Hub's own windows are of 5 minutes."""
DEFAULT_WAIT_S = 30.0
Kind: TypeAlias = tuple[str, str]
"""An origin, and which of its limits."""


class RateGate:
    """Each kind of address has a limit of its own, at the Hub and at every host it leads to."""

    def __init__(self, clock: Callable[[], float], now: Callable[[], float]) -> None:
        """`clock` is monotonic seconds, `now` Unix seconds."""
        self._clock = clock
        self._now = now
        self._closed_until: dict[Kind, float] = {}

    def require(self, kind: Kind) -> None:
        """Raise HubRateLimited as long as the Hub wants no requests of that kind."""
        left_s = self._closed_until.get(kind, -math.inf) - self._clock()
        if left_s > 0:
            raise HubRateLimited("The Hub's rate limit is reached.", retry_after_s=left_s)

    def learn(self, kind: Kind, status: int, headers: Mapping[str, str]) -> None:
        """Note what a reply says; raises HubRateLimited if it is a refusal."""
        limit = parse_ratelimit_headers(headers)
        is_spent = limit is not None and limit.remaining == 0
        if status != HTTPStatus.TOO_MANY_REQUESTS and not is_spent:
            return
        wait_s = _read_retry_after(headers, self._now()) if status == 429 else None
        if wait_s is None:
            wait_s = float(limit.reset_in_seconds) if limit is not None else DEFAULT_WAIT_S
        self._closed_until[kind] = self._clock() + min(max(wait_s, 0.0), MAX_WAIT_S)
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            wait_s = min(max(wait_s, 1.0), MAX_WAIT_S)
            raise HubRateLimited("The Hub's rate limit is reached.", retry_after_s=wait_s)


def kind_of(url: str) -> Kind:
    """Return which limit a request falls under."""
    parts = urlsplit(url)
    if parts.path.endswith("/api/whoami-v2"):
        name = "whoami"
    else:
        name = "resolvers" if "/resolve/" in parts.path else "api"
    return f"{parts.scheme}://{parts.netloc}", name


def _read_retry_after(headers: Mapping[str, str], now: float) -> float | None:
    value = headers.get("Retry-After", "").strip()
    if value.isdecimal() and len(value) < 10:
        return float(value)
    try:
        return parsedate_to_datetime(value).timestamp() - now
    except (ValueError, OverflowError):
        return None
