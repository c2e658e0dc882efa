"""The resident memory of a process and its children, from /proc. Bytes."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_RESET_PEAK = "5"
"""proc(5), /proc/pid/clear_refs: set the peak resident set size to the present one."""


@dataclass(frozen=True)
class Resident:
    """`anonymous` is what the process alone holds; the rest are pages of files, which the machine
    may drop and share."""

    total: int
    anonymous: int


def resident(pid: int) -> Resident:
    """Return what a process and its children hold now."""
    statuses = list(_statuses(pid))
    return Resident(
        total=sum(_field(status, "VmRSS") for status in statuses),
        anonymous=sum(_field(status, "RssAnon") for status in statuses),
    )


def shared_out(pid: int) -> int:
    """Return what they hold, each page that several share counted in parts: processes that fork."""
    return sum(_field(Path(f"/proc/{each}/smaps_rollup").read_text(), "Pss") for each in tree(pid))


def reset_peak(pid: int) -> None:
    for each in tree(pid):
        Path(f"/proc/{each}/clear_refs").write_text(_RESET_PEAK)


def peak_bytes(pid: int) -> int:
    """Return the most since the last reset: of each process by itself, added up."""
    return sum(_field(status, "VmHWM") for status in _statuses(pid))


def _statuses(pid: int) -> Iterator[str]:
    for each in tree(pid):
        try:
            yield Path(f"/proc/{each}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            if each == pid:
                raise


def tree(pid: int) -> Iterator[int]:
    """Yield the process and all below it."""
    yield pid
    for thread in os.listdir(f"/proc/{pid}/task"):
        try:
            children = Path(f"/proc/{pid}/task/{thread}/children").read_text().split()
        except FileNotFoundError:
            continue
        for child in children:
            try:
                yield from tree(int(child))
            except FileNotFoundError:
                continue


def _field(status: str, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
