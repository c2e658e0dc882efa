"""Where a bench ran: what belongs beside every figure."""

import os
import platform
from importlib.metadata import version


def describe() -> dict[str, object]:
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_average": os.getloadavg()[0],
        "torch": version("torch"),
        "transformers": version("transformers"),
    }


def pin(place: int) -> bool:
    """Keep this thread, and what it starts from now on, on one of its cores; tell whether there is
    another beside it. Where the system cannot, nothing is pinned."""
    if not hasattr(os, "sched_setaffinity"):
        return False
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[place % len(cores)]})
    return len(cores) > place
