"""Starts the process of a model, passes on what it writes, and says how it ended."""

import logging
import re
import signal
import socket
import subprocess
import sys
import sysconfig
from collections import deque
from collections.abc import Mapping
from pathlib import Path

import anyio
from anyio.abc import ByteReceiveStream, Process

from gateway.core.names import ModelRef
from gateway.engine.child.wire import EXIT_OUT_OF_MEMORY

logger = logging.getLogger(__name__)

LINE_BYTES = 8192
LAST_LINES = 200
"""Enough for a traceback through torch and transformers."""
# Of Python, of C++ and of torch's allocator, in this order.
_OUT_OF_MEMORY = re.compile(r"MemoryError|bad_alloc|can't allocate memory|out of memory", re.I)


async def start_child(
    ref: ModelRef, connection: socket.socket, environment: Mapping[str, str]
) -> Process:
    """Start a clean interpreter that serves `connection`; the caller ends and reaps it.

    It is a session of its own, so that signals to the gateway's group do not reach it. Call this
    on the thread that lives as long as the gateway: the kernel counts that as the parent.
    """
    command = [sys.executable, "-P", "-m", "gateway.engine.child", str(connection.fileno())]
    return await anyio.open_process(
        [*command, str(ref)],
        stdin=subprocess.DEVNULL,
        # What a library prints is as good as logged.
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=_with_our_package(environment),
        start_new_session=True,
        pass_fds=(connection.fileno(),),
    )


def _with_our_package(environment: Mapping[str, str]) -> dict[str, str]:
    """Have the child find the package that this is; an installed one it finds by itself."""
    root = str(Path(__file__).parents[3])
    if root == sysconfig.get_path("purelib"):
        return dict(environment)
    paths = [root, environment.get("PYTHONPATH", "")]
    return {**environment, "PYTHONPATH": ":".join(path for path in paths if path)}


class ChildLog:
    """Passes on to our log what a child writes, a line at a time, with the model's name."""

    def __init__(self, ref: ModelRef) -> None:
        self._ref = ref
        self._level = logging.WARNING
        self._last: deque[str] = deque(maxlen=LAST_LINES)
        self.ended = anyio.Event()

    @property
    def speaks_of_memory(self) -> bool:
        """Tell whether the last lines say that there was no memory left."""
        return any(_OUT_OF_MEMORY.search(line) for line in self._last)

    async def run(self, stream: ByteReceiveStream) -> None:
        """Read until the child has closed its end."""
        rest = b""
        try:
            async for data in stream:
                *lines, rest = (rest + data).split(b"\n")
                if len(rest) > LINE_BYTES:
                    lines, rest = [*lines, rest], b""
                for line in lines:
                    self._log(line)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass
        if rest:
            self._log(rest)
        self.ended.set()

    def _log(self, line: bytes) -> None:
        text = line[:LINE_BYTES].decode(errors="replace").rstrip()
        first, _, others = text.partition(" ")
        level = logging.getLevelNamesMapping().get(first)
        # A line without a level belongs to the one before it: a traceback, say.
        self._level = self._level if level is None else level
        self._last.append(text)
        logger.log(self._level, "%s: %s", self._ref, text if level is None else others)


def describe_end(returncode: int | None, *, speaks_of_memory: bool, limit_bytes: int) -> str:
    """Return what is known of a process that ended, as the rest of a sentence about it.

    `returncode` is subprocess's: negative for a signal, None while it still runs. Python and C++
    end by themselves where there is no memory, and say so.
    """
    if returncode is None:
        return "stopped answering"
    ended_itself = returncode > 0 or returncode == -signal.SIGABRT
    if returncode == EXIT_OUT_OF_MEMORY or (ended_itself and speaks_of_memory):
        return "ran out of memory" + (f"; its limit is {limit_bytes} bytes" if limit_bytes else "")
    if returncode == -signal.SIGKILL:
        return "was killed by SIGKILL, as the kernel does when memory runs out"
    if returncode < 0:
        return f"was killed by {_signal_name(-returncode)}"
    return f"ended with status {returncode}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
