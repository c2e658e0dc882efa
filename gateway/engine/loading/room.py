"""What the engines of one process share."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from gateway.engine.files.tokenizers import TokenizerCache
from gateway.engine.weights.compute import Compute, ComputeThread, Inline

if TYPE_CHECKING:
    from gateway.engine.weights.gemv import Gemv

NICE = 10
"""How far what is done behind the answers stands back: of a core that a model wants whole it gets a
tenth by the weights of Linux's scheduler, so that it comes to an end under any load."""


class EngineRoom:
    """The place where models compute on a CPU, the one for what can wait, the tokenizers read so
    far, and the code that was compiled."""

    def __init__(self, compute: Compute | None = None, behind: Compute | None = None) -> None:
        """`compute` None: each model computes in a thread of its own. `behind` is for work that
        nobody waits for (None: the same)."""
        self.compute = compute or Inline()
        self.behind = behind or Inline(threads=1)
        self.tokenizers = TokenizerCache()
        self._gemv: list[Gemv | None] = []
        self._lock = threading.Lock()

    def gemv(self) -> Gemv | None:
        """Return the products of few tokens; None where they are left to oneDNN, which is said in
        the log once. Blocking: the first call compiles."""
        from gateway.engine.weights.gemv import find_gemv

        with self._lock:
            if not self._gemv:
                self._gemv.append(find_gemv())
            return self._gemv[0]

    def compute_on(self, device: str) -> Compute:
        """Return the place for a model on that device: a GPU orders its own work."""
        return self.compute if device == "cpu" else Inline()

    def close(self) -> None:
        """Let go of the threads; the engines are closed before."""
        self.compute.close()
        self.behind.close()


def open_room(threads: int) -> EngineRoom:
    """Return a room with one thread that computes for all models, with so many threads to help it
    (0: as many as there are cores), and one for what can wait."""
    return EngineRoom(ComputeThread(threads), ComputeThread(1, nice=NICE))
