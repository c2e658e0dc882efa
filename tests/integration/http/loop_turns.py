"""How long the event loop computes in one turn, in which it serves nobody else.

By the processor's time of its thread: on a machine that is busy with other things a clock would
tell of those. What a virtual machine's host takes for others is in that time, too: it is taken off.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bench.cpu import stolen_seconds

MAX_TURN_S = 0.05
LOOK_S = 0.01
"""How old what is known of the host may be when a turn begins; the kernel counts so exactly."""


class LoopTurns:
    """Measures the turns of an asyncio loop; `longest_s` is the worst of them."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop: Any = loop
        self.longest_s = 0.0
        self.count = 0

    @contextmanager
    def measured(self) -> Iterator[None]:
        # asyncio tells of slow callbacks by itself, but only in wall time and in its debug mode.
        run_once = self._loop._run_once
        looked = stolen_s = 0.0

        def timed() -> None:
            nonlocal looked, stolen_s
            if time.monotonic() - looked > LOOK_S:
                looked, stolen_s = time.monotonic(), stolen_seconds()
            begun = time.thread_time()
            run_once()
            self.count += 1
            took_s = time.thread_time() - begun
            if took_s > self.longest_s:
                self.longest_s = max(self.longest_s, took_s - (stolen_seconds() - stolen_s))

        self._loop._run_once = timed
        try:
            yield
        finally:
            del self._loop._run_once
