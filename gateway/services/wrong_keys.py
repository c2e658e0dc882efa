"""Bounds how many wrong keys one address may try. Who has a right one is never asked here."""

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable

from gateway.core.errors import RateLimited
from gateway.core.rate import Bucket, spend

MAX_ADDRESSES = 10_000
"""Addresses that are remembered; the one that was quiet for longest is forgotten first."""

_IPV6_PREFIX = 64  # what one customer commonly has all addresses of


class WrongKeys:
    """A token bucket for each address, of `per_minute` attempts; 0 is no limit."""

    def __init__(
        self,
        per_minute: int,
        *,
        max_addresses: int = MAX_ADDRESSES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._per_minute = per_minute
        self._max_addresses = max_addresses
        self._clock = clock
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def count(self, address: str) -> None:
        """Count a wrong key from `address`; raise RateLimited for one too many."""
        if not self._per_minute:
            return
        name = name_network(address)
        bucket, allowance = spend(self._buckets.get(name), self._per_minute, self._clock())
        self._buckets[name] = bucket
        self._buckets.move_to_end(name)
        if len(self._buckets) > self._max_addresses:
            self._buckets.popitem(last=False)
        if allowance.wait_s is not None:
            raise RateLimited(
                "Too many wrong keys came from this address.", retry_after_s=allowance.wait_s
            )


def name_network(address: str) -> str:
    """Return what stands for all addresses of one sender: an IPv4 address, an IPv6 network."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return ""  # a proxy may tell anything: all of it is one sender
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, _IPV6_PREFIX), strict=False))
