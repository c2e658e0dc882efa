"""The token bucket: how many requests a minute, and what a caller is told of it. Pure."""

import math

import msgspec

from gateway.core.errors import RateLimited


class Bucket(msgspec.Struct, frozen=True):
    """What was left at a time, in seconds of a monotonic clock."""

    tokens: float
    at: float


class Allowance(msgspec.Struct, frozen=True):
    """What is left of a limit after a request; `wait_s` is how long until the next one may come,
    None when this one may pass. The bucket is full again in `reset_s`."""

    limit: int
    remaining: int
    reset_s: float
    wait_s: float | None = None


def spend(bucket: Bucket | None, per_minute: int, now: float) -> tuple[Bucket, Allowance]:
    """Take one request out of the bucket (None is a full one) if there is one in it.

    The bucket holds a minute's requests and is filled evenly: a burst may be that large, and the
    mean never exceeds the limit by more.
    """
    rate = per_minute / 60
    full = float(per_minute)
    left = full if bucket is None else min(full, bucket.tokens + (now - bucket.at) * rate)
    wait_s = None if left >= 1 else (1 - left) / rate
    left -= wait_s is None
    allowance = Allowance(per_minute, math.floor(left), (full - left) / rate, wait_s)
    return Bucket(left, now), allowance


def require(allowance: Allowance) -> None:
    """Raise RateLimited when the request may not pass."""
    if allowance.wait_s is not None:
        raise RateLimited(
            f"This key has {allowance.limit} requests a minute.", retry_after_s=allowance.wait_s
        )
