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
