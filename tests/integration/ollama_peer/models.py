"""What is installed."""

import asyncio
from dataclasses import dataclass
from typing import Any


@dataclass
class Model:
    """An installed model; `capabilities` None makes the listing one of an older server.

    An answer that streams waits for `gate` after its first line; `vram_size` of what it holds once
    it is loaded are on a GPU. One that `stays` is not unloaded when it is told to.
    """

    name: str
    capabilities: list[str] | None
    size: int
    digest: str
    family: str = "llama"
    parameter_size: str = "3.2B"
    context_length: int = 131072
    answer: str | None = None
    legacy: bool = False
    gate: asyncio.Event | None = None
    vram_size: int = 0
    stays: bool = False

    @property
    def held_size(self) -> int:
        return self.size + 1_000_000


def details_of(model: Model) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "gguf",
        "family": model.family,
        "families": None,
        "parameter_size": model.parameter_size,
        "quantization_level": "Q4_K_M",
    }
