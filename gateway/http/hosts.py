"""Which names a request may call this gateway by. Pure."""

import ipaddress
import re
from collections.abc import Collection

from gateway.core.hosts import is_loopback

_HOST = re.compile(r"(?:\[(?P<address>[^\[\]]*)\]|(?P<name>[^:\[\]]*))(?::\d*)?")


class Hosts:
    """The names that a gateway may be called by; `allowed` is None where every name will do."""

    def __init__(self, allowed: Collection[str] | None) -> None:
        self._allowed = None if allowed is None else frozenset(allowed)
        self._last: str | None = None  # nearly all requests call it by one name

    def admit(self, host_header: str) -> bool:
        if self._allowed is None or host_header == self._last:
            return True
        if not may_be_called(host_header, self._allowed):
            return False
        self._last = host_header
        return True


def may_be_called(host_header: str, allowed: Collection[str]) -> bool:
    """Tell whether a gateway may be called by the name in a Host header.

    A page that made its own name point to this machine (DNS rebinding) calls by that name; those
    who mean this machine say an address, localhost, or a name that the operator allowed.
    """
    named = _HOST.fullmatch(host_header)
    if named is None:
        return False
    try:
        ipaddress.ip_address(named["address"] or named["name"])
    except ValueError:
        name = named["name"] or ""
        name = name.lower().removesuffix(".")
        return is_loopback(name) or name in allowed or "*" in allowed
    return True
