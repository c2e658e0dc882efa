"""The memory that models of all providers share."""

from typing import Annotated, Literal

from pydantic import Field

from gateway.core.eviction import EvictionPolicy
from gateway.settings.values import Group


class MemorySettings(Group):
    """The memory that models of all providers share."""

    memory_budget_bytes: int = Field(
        0,
        ge=0,
        description="Bytes for models on a device, of all providers; 0: 60 % of this machine's "
        "memory, 90 % of a GPU's.",
    )
    eviction_policy: EvictionPolicy = Field(
        "lru",
        description="Who makes room: lru, the least recently used; lrfu, who is asked for least, "
        "by the time and size of a load.",
    )
    ollama_shares_memory: Literal["auto", "yes", "no"] = Field(
        "auto",
        description="Whether Ollama's models count in the budget; auto: where its server is on "
        "this machine.",
    )
    ollama_device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda:[0-9]{1,3})$")] = Field(
        "auto",
        description="Where Ollama's models are taken to go before they were seen in memory; auto: "
        "a GPU if there is one.",
    )
