"""A memory service for gateways that tests put together themselves."""

from collections.abc import Sequence

from gateway.engine.memory.budget import DeviceBudgets
from gateway.engine.memory.ledger import MemoryLedger
from gateway.services.memory import MemoryService


def open_memory(providers: Sequence[str], ledger: MemoryLedger | None = None) -> MemoryService:
    """A service over `ledger`, or over one of 1 GB a device."""
    if ledger is None:
        ledger = MemoryLedger(DeviceBudgets(lambda device: 10**9))
    return MemoryService(ledger, providers=providers, choose_device=lambda: "cpu")
