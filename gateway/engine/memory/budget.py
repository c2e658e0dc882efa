"""The memory that models may take on a device, and who has how much of it. Counts, frees nothing.

Thread-safe: loads take from it on the event loop, caches grow and shrink in the engines' threads.
"""

import threading
from collections.abc import Callable

from gateway.core.names import ModelRef


class MemoryBudget:
    """The bytes of one device. Never more than `total_bytes` are given out at any moment; what is
    claimed was taken without asking, and may be more. `overhead_bytes` of what is used stay with
    the process: they are no model's any more."""

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self.overhead_bytes = 0
        self._used_bytes = 0
        self._lock = threading.Lock()

    @property
    def used_bytes(self) -> int:
        return self._used_bytes

    @property
    def free_bytes(self) -> int:
        return self.total_bytes - self._used_bytes

    @property
    def models_bytes(self) -> int:
        """What there is for models when none is loaded."""
        return self.total_bytes - self.overhead_bytes

    def open(self, ref: ModelRef, size_bytes: int) -> "Share | None":
        """Return a share of `size_bytes` for a model, or None when there is no room for it."""
        share = Share(ref, self)
        return share if self._move(share, size_bytes) else None

    def claim(self, ref: ModelRef, size_bytes: int) -> "Share":
        """Return a share of what a server took by itself, whether there is room or not."""
        share = Share(ref, self)
        self._set(share, size_bytes)
        return share

    def _move(self, share: "Share", size_bytes: int) -> bool:
        """Move bytes into a share (negative: back); False, and nothing moved, where there are too
        few, or when the share is closed."""
        with self._lock:
            if share.closed or size_bytes > self.total_bytes - self._used_bytes:
                return False
            if share.held_bytes + size_bytes < 0:
                raise ValueError(f"{share.ref} gives back more bytes than it holds")
            share.held_bytes += size_bytes
            self._used_bytes += size_bytes
            return True

    def _leave(self, share: "Share", size_bytes: int) -> None:
        with self._lock:
            moved = min(share.held_bytes, size_bytes)
            share.held_bytes -= moved
            self.overhead_bytes += size_bytes
            self._used_bytes += size_bytes - moved

    def _set(self, share: "Share", size_bytes: int) -> None:
        with self._lock:
            if not share.closed:
                self._used_bytes += size_bytes - share.held_bytes
                share.held_bytes = size_bytes

    def _close(self, share: "Share") -> None:
        with self._lock:
            self._used_bytes -= share.held_bytes
            share.held_bytes = 0
            share.closed = True


class Share:
    """What one loaded model holds of its device: its weights, and its cache as it is now.

    A `Memory` for the engine's state.
    """

    def __init__(self, ref: ModelRef, budget: MemoryBudget) -> None:
        self.ref = ref
        self.held_bytes = 0
        self.closed = False
        self.on_shortage: Callable[[int], None] | None = None
        """Called, in the thread that asked, with the bytes that there was no room for: whoever
        manages the models may make some until they are asked for again."""
        self._budget = budget

    def reserve(self, size_bytes: int, *, is_needed: bool = True) -> bool:
        """Take `size_bytes` more; False, and nothing changed, when there is no room for them.

        What `is_needed` and not there is told to `on_shortage`.
        """
        if size_bytes < 0:
            raise ValueError("a share grows by what it reserves")
        if self._budget._move(self, size_bytes):
            return True
        if is_needed and self.on_shortage is not None and not self.closed:
            self.on_shortage(size_bytes)
        return False

    def release(self, size_bytes: int) -> None:
        """Give `size_bytes` back; harmless once the share is closed."""
        if size_bytes < 0:
            raise ValueError("a share shrinks by what it releases")
        self._budget._move(self, -size_bytes)

    def claim(self, size_bytes: int) -> None:
        """Hold exactly so much, whether there is room or not."""
        self._budget._set(self, size_bytes)

    def leave_behind(self, size_bytes: int) -> None:
        """Let the process have `size_bytes` for good, out of what is held as far as that goes."""
        self._budget._leave(self, size_bytes)

    def close(self) -> None:
        """Give everything back, once and for all: a closed share reserves nothing."""
        self._budget._close(self)


class DeviceBudgets:
    """One budget for each device, made when the device is first asked for."""

    def __init__(self, total_of: Callable[[str], int]) -> None:
        """`total_of` returns the bytes that models may take on a device; it may block."""
        self._total_of = total_of
        self._budgets: dict[str, MemoryBudget] = {}
        self._lock = threading.Lock()

    def known(self, device: str) -> MemoryBudget | None:
        """Return a device's budget if it was asked for before; never blocks."""
        return self._budgets.get(device)

    def devices(self) -> list[str]:
        """Return the devices that were asked for, by name."""
        return sorted(self._budgets)

    def of(self, device: str) -> MemoryBudget:
        """Return the budget of a device such as `cpu` or `cuda:0`."""
        with self._lock:
            if device not in self._budgets:
                self._budgets[device] = MemoryBudget(self._total_of(device))
            return self._budgets[device]
