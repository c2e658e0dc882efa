"""Which names a request may call this gateway by. Pure."""

import ipaddress
from collections.abc import Collection


def is_loopback(host: str) -> bool:
    """Tell whether `host` (a name or an address) can only be reached from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def may_be_called(host_header: str, allowed: Collection[str]) -> bool:
    """Tell whether a gateway may be called by the name in a Host header.

    A page that made its own name point to this machine (DNS rebinding) calls by that name; those
    who mean this machine say an address, localhost, or a name that the operator allowed.
    """
    name = host_header.rpartition("]")[0].lstrip("[") or host_header.partition(":")[0]
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return is_loopback(name.lower()) or name.lower() in allowed or "*" in allowed
    return True
