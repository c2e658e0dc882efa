"""What Ollama's models hold of memory: how the service tells of its requests and of what it saw."""

import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol

import anyio
import msgspec

from gateway.core.loading import LoadPlan
from gateway.core.models import Basis
from gateway.core.names import ModelRef
from gateway.core.states import ModelState
from gateway.engine.memory.budget import Share
from gateway.providers.ollama_fault_wire import PROVIDER
from gateway.providers.ollama_listing_wire import Running

FindSize = Callable[[ModelRef], Awaitable[int | None]]

CPU = "cpu"


class OllamaDevices(msgspec.Struct, frozen=True):
    """Where Ollama's models are: `gpu` is what this gateway calls the GPU that Ollama uses, `usual`
    where a model goes that was never seen in memory."""

    gpu: str = "cuda:0"
    usual: str = CPU


def find_devices(wanted: str, *, platform: str = sys.platform, root: str = "/dev") -> OllamaDevices:
    """Return where the models of an Ollama server on this machine are.

    `wanted` is `auto` or a device; `auto` is the GPU where the machine has one: without torch,
    which may see less than Ollama does, its device files tell.
    """
    if platform == "darwin":
        devices = OllamaDevices(gpu="mps", usual="mps")
    else:
        has_gpu = any(Path(root, name).exists() for name in ("nvidia0", "kfd"))
        devices = OllamaDevices(usual="cuda:0" if has_gpu else CPU)
    if wanted == "auto":
        return devices
    return OllamaDevices(gpu=devices.gpu if wanted == CPU else wanted, usual=wanted)


class Stay:
    """One model in Ollama's memory, or on its way there. `leases` are requests of this gateway."""

    def __init__(self, ref: ModelRef, last_used: float) -> None:
        self.ref = ref
        self.shares: dict[str, Share] = {}
        self.basis: Basis = "estimated"
        self.leases = 0
        self.last_used = last_used
        self.busy_until = last_used
        self.expires_at: float | None = None
        self.was_asked = False
        """Whether this gateway used it since the last look: then that is why `expires_at` moved."""
        self.changed_at = 0
        self.is_going = False
        self.settled = anyio.Event()
        """Set when it is no longer going: it is gone, or it stays."""
        self.arrival = anyio.Lock()
        self.began_at: float | None = None

    def close(self) -> None:
        for share in self.shares.values():
            share.close()
        self.shares = {}


class OllamaMemory(Protocol):
    """What a service tells of its requests and of what it saw."""

    def serve(
        self,
        ask: Callable[[], Awaitable[object]],
        unload: Callable[[ModelRef], Awaitable[None]],
    ) -> None:
        """Begin: `ask` looks at `/api/ps` and comes back with it to `note`."""
        ...

    async def enter(self, ref: ModelRef, find_size: FindSize) -> Stay:
        """Count one more request to a model; for one that is not in memory, room is taken first.

        `find_size` tells the size of its file, None where nobody knows. Raises ModelTooLarge,
        NoRoom.
        """
        ...

    def enter_now(self, ref: ModelRef) -> Stay | None:
        """Do as `enter` where nothing is to be waited for; else None."""
        ...

    def state_of(self, ref: ModelRef) -> ModelState | None:
        """Return whether a model is in memory now; None where that is not kept."""
        ...

    def answered(self, stay: Stay) -> None:
        """Take note that a model answers: it is in memory, and Ollama can tell how large it is."""
        ...

    def leave(self, stay: Stay) -> None:
        """Count one request less."""
        ...

    async def plan(self, ref: ModelRef, size_bytes: int | None) -> LoadPlan:
        """Return what a load would take now, and who would go for it."""
        ...

    def mark(self) -> int:
        """Return a point in time for `note`; take it before Ollama is asked."""
        ...

    async def note(self, running: Sequence[Running], since: int) -> None:
        """Take note of what `/api/ps` told; what changed after `since` stays."""
        ...

    def forget(self, since: int) -> None:
        """Take note that the server is gone, and all that nobody uses with it."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


class Elsewhere:
    """The memory of an Ollama server that shares none with this gateway's models."""

    def __init__(self) -> None:
        self._stay = Stay(ModelRef(PROVIDER, ""), 0.0)
        self._stay.basis = "told"

    def serve(
        self,
        ask: Callable[[], Awaitable[object]],
        unload: Callable[[ModelRef], Awaitable[None]],
    ) -> None:
        pass

    async def enter(self, ref: ModelRef, find_size: FindSize) -> Stay:
        return self._stay

    def enter_now(self, ref: ModelRef) -> Stay:
        return self._stay

    def state_of(self, ref: ModelRef) -> ModelState | None:
        return None

    def answered(self, stay: Stay) -> None:
        pass

    def leave(self, stay: Stay) -> None:
        pass

    async def plan(self, ref: ModelRef, size_bytes: int | None) -> LoadPlan:
        reason = "Ollama decides by itself which models go to make room."
        return LoadPlan(ref, need_bytes=size_bytes, reason=reason)

    def mark(self) -> int:
        return 0

    async def note(self, running: Sequence[Running], since: int) -> None:
        pass

    def forget(self, since: int) -> None:
        pass

    def close(self) -> None:
        pass
