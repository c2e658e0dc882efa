"""Ollama's listings: `/api/tags`, `/api/ps` and `/api/show` to ModelInfo and Resident. Pure.

The types extend those of the `ollama` package by the fields that it drops.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ollama import ListResponse, ProcessResponse, ShowResponse
from ollama._types import ModelDetails, SubscriptableBaseModel

from gateway.core.errors import InvalidRequest
from gateway.core.models import Capability, ModelInfo, Resident
from gateway.core.names import ModelRef, normalise_ollama_name
from gateway.core.states import ModelState
from gateway.providers.ollama_fault_wire import PROVIDER

Running = ProcessResponse.Model

_CAPABILITIES = {
    "completion": (Capability.CHAT, Capability.COMPLETION, Capability.STRUCTURED),
    "vision": (Capability.VISION,),
    "tools": (Capability.TOOLS,),
    "thinking": (Capability.THINKING,),
    "embedding": (Capability.EMBEDDING,),
    "insert": (Capability.INSERT,),
}


class TagDetails(ModelDetails):
    context_length: int | None = None
    embedding_length: int | None = None


class Tag(ListResponse.Model):
    """An installed model; `capabilities` and the lengths are None on older servers."""

    details: TagDetails | None = None
    name: str | None = None
    capabilities: list[str] | None = None
    remote_model: str | None = None
    remote_host: str | None = None


class Tags(SubscriptableBaseModel):
    models: list[Tag] | None = None


class ServerVersion(SubscriptableBaseModel):
    version: str


class Traits:
    """What only `/api/show` tells on older servers."""

    __slots__ = ("capabilities", "context_length")

    def __init__(self, capabilities: tuple[Capability, ...], context_length: int | None) -> None:
        self.capabilities = capabilities
        self.context_length = context_length


def read_traits(shown: ShowResponse) -> Traits:
    """Return the capabilities (empty when the server is too old to know) and context length."""
    return Traits(read_capabilities(shown.capabilities or ()), _context_length(shown.modelinfo))


def read_capabilities(names: Sequence[str]) -> tuple[Capability, ...]:
    """Return what Ollama's capability names mean, in the order of Capability; unknown is dropped.

    A model that completes can follow a format too: the grammar works for every model.
    """
    found = {capability for name in names for capability in _CAPABILITIES.get(name, ())}
    return tuple(capability for capability in Capability if capability in found)


def read_ref(name: str | None) -> ModelRef | None:
    """Return the ref of a listed name; None for one that breaks Ollama's own rules."""
    try:
        return ModelRef(PROVIDER, normalise_ollama_name(name or ""))
    except InvalidRequest:
        return None


def index_running(running: Sequence[Running]) -> dict[str, Running]:
    """Return the models in memory by their key: the name in its short form and lower case."""
    refs = ((read_ref(model.model or model.name), model) for model in running)
    return {name_key(ref): model for ref, model in refs if ref is not None}


def name_key(ref: ModelRef) -> str:
    """Return what equal names have in common: Ollama matches installed models in any case."""
    return ref.model.lower()


def read_info(ref: ModelRef, tag: Tag, running: Running | None, traits: Traits | None) -> ModelInfo:
    """Return the listing line of an installed model; `traits` fill in what `tag` lacks."""
    capabilities: tuple[Capability, ...] = ()
    if tag.capabilities is not None:
        capabilities = read_capabilities(tag.capabilities)
    elif traits is not None:
        capabilities = traits.capabilities
    # A loaded model's own context is what a prompt must fit; the others are what it could be.
    lengths = (
        running.context_length if running else None,
        tag.details.context_length if tag.details else None,
        traits.context_length if traits else None,
    )
    return ModelInfo(
        ref=ref,
        state=ModelState.NOT_LOADED if running is None else ModelState.LOADED,
        # The package reads sizes as a pydantic type; vendor types end here.
        size_bytes=None if tag.size is None else int(tag.size),
        context_length=next((length for length in lengths if length), None),
        capabilities=capabilities,
        metadata=_metadata(tag, running),
    )


def read_resident(model: Running) -> Resident | None:
    """Return a line of `/api/ps` as a resident; `expires_at` is Unix seconds."""
    ref = read_ref(model.model or model.name)
    if ref is None:
        return None
    expires = model.expires_at
    return Resident(
        ref=ref,
        memory_bytes=int(model.size or 0),
        expires_at=expires.timestamp() if expires and expires.year > 1 else None,
    )


def _metadata(tag: Tag, running: Running | None) -> tuple[tuple[str, str], ...]:
    details = tag.details or TagDetails()
    facts = {
        "family": details.family,
        "parameter_size": details.parameter_size,
        "quantization_level": details.quantization_level,
        "format": details.format,
        "parent_model": details.parent_model,
        "embedding_length": details.embedding_length,
        "digest": tag.digest,
        "modified_at": tag.modified_at.isoformat() if tag.modified_at else None,
        "remote_model": tag.remote_model,
        "remote_host": tag.remote_host,
    }
    if running is not None:
        facts["memory_bytes"] = running.size
        facts["vram_bytes"] = running.size_vram
        facts["expires_at"] = running.expires_at.isoformat() if running.expires_at else None
    return tuple((key, str(fact)) for key, fact in facts.items() if fact not in (None, ""))


def _context_length(model_info: Mapping[str, Any] | None) -> int | None:
    # The key is "<architecture>.context_length".
    for key, value in (model_info or {}).items():
        if key.endswith(".context_length") and isinstance(value, int):
            return value
    return None
