"""What models hold of this machine's memory."""

import time
from collections.abc import Callable
from functools import partial

from gateway.core.ledger import UNBOUNDED, Movement
from gateway.engine.loading.loader import choose_device
from gateway.engine.memory.budget import DeviceBudgets
from gateway.engine.memory.ledger import MemoryLedger
from gateway.engine.weights.runtime import default_budget
from gateway.services.memory import MemoryService
from gateway.settings import Settings


def build_memory(settings: Settings, moved: Callable[[Movement], None]) -> MemoryService:
    """Return the service over one ledger, which the providers' models are in."""
    ledger = MemoryLedger(
        DeviceBudgets(partial(budget_bytes, settings)),
        policy=settings.eviction_policy,
        moved=moved,
        clock=time.monotonic,
    )
    return MemoryService(
        ledger,
        providers=tuple(settings.provider_kinds),
        choose_device=partial(_usual_device, settings),
    )


def budget_bytes(settings: Settings, device: str) -> int:
    """Return what models may take on a device. Blocking: it may import torch."""
    if settings.memory_budget_bytes:
        return settings.memory_budget_bytes
    if device != "cpu" and not _runs_models(settings):
        return UNBOUNDED  # torch, which knows the size of a GPU, is not wanted
    return default_budget(device)


def _usual_device(settings: Settings) -> str:
    return choose_device(settings.hf_device) if _runs_models(settings) else "cpu"


def _runs_models(settings: Settings) -> bool:
    return "huggingface" in settings.provider_kinds.values()
