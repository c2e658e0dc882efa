"""What is known of models and providers: listings, residency, load settings, filters."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Literal

import msgspec

from gateway.core.cards import ModelCard
from gateway.core.names import ModelRef
from gateway.core.states import ModelState, ProviderState, UnloadReason
from gateway.core.trust import Trust


class Capability(StrEnum):
    """What a model can be asked for. COMPLETION continues text, CHAT follows messages."""

    CHAT = "chat"
    COMPLETION = "completion"
    VISION = "vision"
    TOOLS = "tools"
    THINKING = "thinking"
    EMBEDDING = "embedding"
    INSERT = "insert"
    STRUCTURED = "structured"


class ModelInfo(msgspec.Struct, frozen=True):
    """One line of a listing. Sizes are bytes; `context_length` is tokens; None is unknown.

    `batched` tells whether requests share the model's steps, or are answered one at a time. One
    that is `virtual` stands for others; requests ask for it by `listed_as` where that is there.
    """

    ref: ModelRef
    state: ModelState = ModelState.NOT_LOADED
    size_bytes: int | None = None
    context_length: int | None = None
    capabilities: tuple[Capability, ...] = ()
    metadata: tuple[tuple[str, str], ...] = ()
    batched: bool | None = None
    message: str | None = None
    virtual: bool = False
    listed_as: str | None = None

    @property
    def id(self) -> str:
        return self.listed_as or str(self.ref)


class ProviderStatus(msgspec.Struct, frozen=True):
    """What the last look at a provider found; times are Unix seconds."""

    name: str
    kind: str
    state: ProviderState
    checked_at: float
    last_seen_at: float | None = None
    error_code: str | None = None
    error_message: str | None = None
    capabilities: tuple[Capability, ...] = ()


class ModelStateChange(msgspec.Struct, frozen=True):
    """One transition of one model; `message` says why it failed, `reason` why it is unloaded."""

    ref: ModelRef
    state: ModelState
    size_bytes: int | None = None
    message: str | None = None
    reason: UnloadReason | None = None


Basis = Literal["measured", "told", "reserved", "estimated"]
"""How the bytes of a model in memory are known: counted here, told by its server, reserved for a
load by what its files say, or reserved by no more than their size."""


class Resident(msgspec.Struct, frozen=True):
    """A model in memory, or on its way there. `leases` > 0: in use. Times are of one clock, its
    unit seconds.

    `slots` is how many of the counted places it takes, `heat` how often it was asked for lately,
    `load_s` what its last load took.
    """

    ref: ModelRef
    memory_bytes: int
    leases: int = 0
    last_used: float = 0.0
    pinned: bool = False
    expires_at: float | None = None
    basis: Basis = "measured"
    slots: int = 1
    heat: float = 0.0
    load_s: float | None = None


class LocalModel(msgspec.Struct, frozen=True):
    """A model's files on this machine, as a scan found them.

    `changed_ns` is when its weights were last written; two that are equal are the same files.
    `problem` is a sentence on why it cannot be loaded, where the files themselves tell, `trust`
    what the operator allows to it.
    """

    name: str
    path: str
    size_bytes: int
    revision: str | None = None
    changed_ns: int = 0
    source: str = "local"
    card: ModelCard = ModelCard()
    problem: str | None = None
    trust: Trust = Trust()


class ModelFilter(msgspec.Struct, frozen=True):
    """Which models a listing shall hold; an empty filter lets all through."""

    providers: frozenset[str] = frozenset()
    states: frozenset[ModelState] = frozenset()
    capabilities: frozenset[Capability] = frozenset()
    text: str = ""


def select_models(models: Sequence[ModelInfo], wanted: ModelFilter) -> list[ModelInfo]:
    """Return the models that match every part of `wanted`, in their order.

    `capabilities` must all be there; `text` is found in the id or a metadata value, in any case.
    """
    return [model for model in models if _matches(model, wanted)]


def _matches(model: ModelInfo, wanted: ModelFilter) -> bool:
    if wanted.providers and model.ref.provider not in wanted.providers:
        return False
    if wanted.states and model.state not in wanted.states:
        return False
    if not wanted.capabilities.issubset(model.capabilities):
        return False
    needle = wanted.text.casefold().strip()
    texts = (model.id, *(value for _, value in model.metadata))
    return not needle or any(needle in text.casefold() for text in texts)
