"""What the engines of one process share."""

from __future__ import annotations

import threading
from importlib.util import find_spec
from typing import TYPE_CHECKING

from gateway.core.loading import LoadConfig
from gateway.core.models import LocalModel
from gateway.engine.files.tokenizers import TokenizerCache
from gateway.engine.memory.overhead import Overhead
from gateway.engine.weights.compute import Compute, ComputeThread, Inline
from gateway.engine.weights.runtime import import_torch

if TYPE_CHECKING:
    from gateway.engine.weights.gemv import Gemv

NICE = 10
"""How far what is done behind the answers stands back: of a core that a model wants whole it gets a
tenth by the weights of Linux's scheduler, so that it comes to an end under any load."""

CODE_BYTES = 128 * 2**20
"""What LLVM takes at the most with the products of few tokens and the first kind of heads, where
nothing was compiled before: 92 MB were measured, 65 MB of them pages of its file."""


class EngineRoom:
    """The place where models compute on a CPU, the one for what can wait, the tokenizers read so
    far, and the code that was compiled."""

    def __init__(self, compute: Compute | None = None, behind: Compute | None = None) -> None:
        """`compute` None: each model computes in a thread of its own. `behind` is for work that
        nobody waits for (None: the same)."""
        self.compute = compute or Inline()
        self.behind = behind or Inline(threads=1)
        self.tokenizers = TokenizerCache()
        self.overhead = Overhead()
        self._gemv: list[Gemv | None] = []
        self._lock = threading.Lock()

    def gemv(self) -> Gemv | None:
        """Return the products of few tokens; None where they are left to oneDNN, which is said in
        the log once. Blocking: the first call compiles."""
        from gateway.engine.weights.gemv import find_gemv

        with self._lock:
            if not self._gemv:
                with self.overhead.counting(CODE_BYTES):
                    found = find_gemv(self.overhead)
                self._gemv.append(found)
            return self._gemv[0]

    def code_bytes(self, files: LocalModel, config: LoadConfig) -> int:
        """Return what a load on the processor may add to the overhead at the most. Blocking: it may
        import torch."""
        dtype = files.card.dtype if config.dtype == "auto" else config.dtype
        is_packed = (
            dtype == "bfloat16"
            and config.quantization == "none"
            and files.card.format != "gguf"
            and not files.card.embeds
        )
        if not is_packed or self._gemv or find_spec("llvmlite") is None:
            return 0
        import_torch()
        from gateway.engine.weights.linear import packs_bfloat16

        return CODE_BYTES if packs_bfloat16() else 0

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
