"""Where the numbers of models are computed: on a CPU, in one thread for all models.

OpenMP keeps a team of threads for each thread that computes. With two teams there are more threads
than cores; libgomp then lets none wait awake for the next operator, and each of the hundreds in a
step is begun by waking threads that sleep. So the models take turns, a step each, in one thread:
whatever is loaded, no more threads compute than there are cores. Figures: bench/README.md.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, TypeVar

import anyio.to_thread

Result = TypeVar("Result")

SMALL_BYTES = 32 * 2**20
"""A model below this is computed by one thread: see `Compute.run`."""


class Compute(Protocol):
    """A place where work is done, a piece at a time."""

    def run(self, work: Callable[[], Result], *, is_small: bool = False) -> Result:
        """Do a piece of work, and return or raise what it does. Blocking. What `is_small` has
        operators that end sooner than a second thread can be woken and waited for."""
        ...

    def close(self) -> None:
        """Let go of threads, once nobody asks any more. Blocking until the last work is done."""
        ...


class Inline:
    """Each caller computes in his own thread: for devices that order their own work."""

    def __init__(self, threads: int = 0) -> None:
        """`threads` is how many may compute one piece; 0: as many as there are cores."""
        self._threads = bound_threads(threads)

    def run(self, work: Callable[[], Result], *, is_small: bool = False) -> Result:
        _use(1 if is_small else self._threads)
        return work()

    def close(self) -> None:
        pass


class ComputeThread:
    """One thread that does the work of all who ask, in the order in which they ask."""

    def __init__(self, threads: int = 0, *, nice: int = 0) -> None:
        """`threads` is how many may compute one piece; 0: as many as there are cores. `nice` is how
        far it stands back behind other threads (POSIX, 0 to 19), where threads have it apart."""
        self._threads = bound_threads(threads)
        self._nice = nice
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def run(self, work: Callable[[], Result], *, is_small: bool = False) -> Result:
        job = _Job(work, 1 if is_small else self._threads)
        self._start()
        self._jobs.put(job)
        result: Result = job.result()
        return result

    def close(self) -> None:
        """End the thread; another `run` would start it anew."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._jobs.put(None)
            thread.join()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="compute", daemon=True)
                self._thread.start()

    def _serve(self) -> None:
        if self._nice and sys.platform == "linux":  # elsewhere it is the whole process that has it
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._nice)
        while (job := self._jobs.get()) is not None:
            job.do()
            del job  # what it came to is the caller's alone


class _Job:
    def __init__(self, work: Callable[[], Any], threads: int) -> None:
        self._work = work
        self._threads = threads
        self._value: Any = None
        self._error: BaseException | None = None
        self._done = threading.Lock()
        self._done.acquire()

    def do(self) -> None:
        try:
            _use(self._threads)
            self._value = self._work()
        except BaseException as error:  # it is raised where the work was asked for
            self._error = error
        self._done.release()

    def result(self) -> Any:
        self._done.acquire()
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # else the traceback would keep its frames, and they the error
        return self._value


async def run_aside(work: Callable[[], Result]) -> Result:
    """Do a piece of work in a thread beside those that compute, of which it makes no more."""
    return await anyio.to_thread.run_sync(partial(Inline(threads=1).run, work))


def bound_threads(wanted: int) -> int:
    """Return how many threads shall compute where so many are wanted (0: no matter how many);
    never more than there are cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(wanted or cores or 1, cores or 1)


def _use(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
