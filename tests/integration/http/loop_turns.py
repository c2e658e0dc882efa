"""How long the event loop computes in one turn, in which it serves nobody else.

By the processor's time of its thread: on a machine that is busy with other things a clock would
tell of those.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

MAX_TURN_S = 0.05


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

        def timed() -> None:
            begun = time.thread_time()
            run_once()
            self.count += 1
            self.longest_s = max(self.longest_s, time.thread_time() - begun)

        self._loop._run_once = timed
        try:
            yield
        finally:
            del self._loop._run_once
