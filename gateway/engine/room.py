"""What the engines of one process share."""

from gateway.engine.compute import Compute, Inline
from gateway.engine.tokenizers import TokenizerCache


class EngineRoom:
    """The place where models compute on a CPU, and the tokenizers read so far."""

    def __init__(self, compute: Compute | None = None) -> None:
        """`compute` None: each model computes in a thread of its own."""
        self.compute = compute or Inline()
        self.tokenizers = TokenizerCache()

    def compute_on(self, device: str) -> Compute:
        """Return the place for a model on that device: a GPU orders its own work."""
        return self.compute if device == "cpu" else Inline()

    def close(self) -> None:
        """Let go of the thread; the engines are closed before."""
        self.compute.close()
