"""The processor time of a process and its children, as the kernel counts it, and what the machine's
host took. Seconds."""

import os
import time
from pathlib import Path

from bench import resident


def seconds(pid: int) -> float:
    """Return user and system time so far, to the microsecond; children that ended are not in it."""
    return sum(_of_one(each) for each in resident.tree(pid))


def stolen_seconds() -> float:
    """Return how long all cores so far waited for a host that ran others, by proc_stat(5); 0 where
    the system does not tell."""
    try:
        steal = Path("/proc/stat").read_text().split(maxsplit=9)[8]
    except FileNotFoundError:
        return 0.0
    return int(steal) / os.sysconf("SC_CLK_TCK")


def _of_one(pid: int) -> float:
    # clock_getcpuclockid(3): the clock of a process is its id's complement, shifted, and 2.
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0
