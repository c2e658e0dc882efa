"""What the engines of one process share."""

from gateway.engine.compute import Compute, ComputeThread, Inline
from gateway.engine.tokenizers import TokenizerCache

NICE = 10
"""How far what is done behind the answers stands back: of a core that a model wants whole it gets a
tenth by the weights of Linux's scheduler, so that it comes to an end under any load."""


class EngineRoom:
    """The place where models compute on a CPU, the one for what can wait, and the tokenizers read
    so far."""

    def __init__(self, compute: Compute | None = None, behind: Compute | None = None) -> None:
        """`compute` None: each model computes in a thread of its own. `behind` is for work that
        nobody waits for (None: the same)."""
        self.compute = compute or Inline()
        self.behind = behind or Inline(threads=1)
        self.tokenizers = TokenizerCache()

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
