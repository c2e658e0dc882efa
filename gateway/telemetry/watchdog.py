"""Watches whether the event loop keeps turning: while it stands still, nobody is served.

The loop takes note of the time at each beat. That tells how long it stood still, whatever it did:
also in C code that holds the interpreter's lock. A thread looks at the same note, and tells where
the loop stands while it still does. (Where the lock is held, it tells as soon as it gets the lock,
which is before the loop's thread can go on.)
"""

import gc
import logging
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping
from math import inf
from types import FrameType

import anyio

from gateway.telemetry.figures import Distribution

logger = logging.getLogger(__name__)

STALL_BOUNDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
BEATS = 2
"""Beats in the shortest time that is a stall: one that is by half longer is surely noticed."""
MAX_FRAMES = 20
_LOOP_FILES = (
    *("asyncio/runners.py", "asyncio/base_events.py", "asyncio/events.py", "selectors.py"),
)
ORDINARY_COLLECTIONS = "as once torch is imported and after loads of models"
OWN_SHARE = 0.5
"""Of the time of a stall: who had less of a processor was held up by others."""
MAX_TOLD = 10
"""Stacks that are logged in each minute; more would bury the log in what it tells already."""


class Stalls:
    """How often and how long the loop stood still; times are seconds."""

    def __init__(self) -> None:
        self.seconds = Distribution(STALL_BOUNDS)
        self.worst_s = 0.0

    def add(self, seconds: float) -> None:
        self.seconds.add(seconds)
        self.worst_s = max(self.worst_s, seconds)


class LoopWatchdog:
    """Counts the stalls of the loop that runs `run`, and logs where each happened."""

    def __init__(
        self,
        stalls: Stalls,
        *,
        warn_s: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        """`warn_s` is what the loop may stand still before it is a stall."""
        self._stalls = stalls
        self._warn_s = warn_s
        self._beat_s = warn_s / BEATS
        self._clock = clock
        self._sleep = sleep
        self._beaten_at = 0.0
        self._ran_s = 0.0  # of a processor, at that beat
        self._told: list[float] = []
        self._collected_at = -1.0

    async def run(self) -> None:
        """Watch for ever; end it by cancelling."""
        self._beaten_at, self._ran_s = self._clock(), time.process_time()
        stop = threading.Event()
        arguments = (threading.get_ident(), stop)
        watcher = threading.Thread(
            target=self._watch, args=arguments, name="loop watchdog", daemon=True
        )
        watcher.start()
        gc.callbacks.append(self._note_collection)
        try:
            while True:
                await self._sleep(self._beat_s)
                self._beat()
        finally:
            gc.callbacks.remove(self._note_collection)
            stop.set()
            watcher.join()

    def _note_collection(self, phase: str, info: dict[str, int]) -> None:
        if info["generation"] == 2:
            self._collected_at = inf if phase == "start" else self._clock()

    def _beat(self) -> None:
        now = self._clock()
        stood_s = now - self._beaten_at - self._beat_s
        self._beaten_at, self._ran_s = now, time.process_time()
        if stood_s > self._warn_s:
            self._stalls.add(stood_s)

    def _watch(self, loop_thread: int, stop: threading.Event) -> None:
        told_of = 0.0
        while not stop.wait(self._warn_s):
            beaten_at = self._beaten_at
            stood_s = self._clock() - beaten_at - self._beat_s
            if stood_s > self._warn_s and beaten_at != told_of:
                told_of = beaten_at
                self._tell(stood_s, loop_thread)

    def _tell(self, stood_s: float, loop_thread: int) -> None:
        now = self._clock()
        ran = (time.process_time() - self._ran_s) / (stood_s + self._beat_s)
        self._told = [told_at for told_at in self._told if now - told_at < 60]
        frames = sys._current_frames()
        frame = frames.pop(loop_thread, None)
        if len(self._told) >= MAX_TOLD or frame is None:
            return
        self._told.append(now)
        frames.pop(threading.get_ident(), None)
        level, where = _describe(frame, frames, ran)
        if level is logging.WARNING and self._collected_at > now - stood_s:
            # Every thread stands still meanwhile, whatever it does.
            level, where = logging.INFO, f"while garbage was collected, {ORDINARY_COLLECTIONS}"
        logger.log(level, "the event loop has stood still for %.0f ms %s", stood_s * 1000, where)


def _describe(frame: FrameType, others: Mapping[int, FrameType], ran: float) -> tuple[int, str]:
    """Return where the loop stands, and how grave that is: the stack above the loop's own frames.
    `ran` is the share of that time for which this process had a processor.

    Without any, the loop only waits to go on. Python code of another thread lets it within
    milliseconds, so if one imports, that is why: loading a library holds the interpreter. That
    happens once for each, and nobody can mend it.
    """
    stack = traceback.extract_stack(frame)
    loop_at = [at for at, each in enumerate(stack) if each.filename.endswith(_LOOP_FILES)]
    own = stack[loop_at[-1] + 1 :] if loop_at else stack
    imported = next(filter(None, map(_find_import, others.values())), None)
    if imported is not None and (not own or _waits_for_thread(own)):
        return logging.INFO, f"while a thread imports {imported}, which happens once"
    if not own and ran < OWN_SHARE:
        return logging.INFO, f"while the machine ran other things: this process for {ran:.0%} of it"
    if not own:
        busy = "".join(map(_describe_thread, others.values()))
        return (
            logging.WARNING,
            f"and nothing runs in it: a thread holds it up{busy}",
        )
    return logging.WARNING, f"at\n{''.join(traceback.format_list(own[-MAX_FRAMES:]))}"


def _waits_for_thread(own: list[traceback.FrameSummary]) -> bool:
    """Tell whether the loop starts a thread, which cannot say that it is there meanwhile."""
    return any(each.filename.endswith("threading.py") and each.name == "start" for each in own)


def _find_import(frame: FrameType | None) -> str | None:
    """Return the module that a thread imports, the innermost one; None if it imports none."""
    while frame is not None:
        if frame.f_code.co_name == "_load_unlocked" and "spec" in frame.f_locals:
            return str(frame.f_locals["spec"].name)
        frame = frame.f_back
    return None


def _describe_thread(frame: FrameType) -> str:
    at = traceback.extract_stack(frame)[-1]
    return f"\n  beside it: {at.filename}:{at.lineno} in {at.name}"
