"""Which model answers a request, decided from plain data. Pure: asks nobody."""

from collections.abc import Collection, Mapping

import msgspec

from gateway.core.catalogue import Catalogue
from gateway.core.embeddings import EmbedRequest
from gateway.core.errors import (
    AmbiguousModel,
    InvalidRequest,
    ModelNotFound,
    ProviderUnavailable,
    UnsupportedCapability,
)
from gateway.core.messages import GenerateRequest
from gateway.core.models import Capability, ModelInfo
from gateway.core.names import (
    HUB_NAME,
    MAX_NAME_LENGTH,
    ModelRef,
    looks_like_ollama,
    nearest_names,
    parse_ref,
)
from gateway.core.rotation import RESERVED


class Route(msgspec.Struct, frozen=True):
    """The choice and what it was made from; `info` is None when the catalogue lacks the model."""

    ref: ModelRef
    info: ModelInfo | None


def resolve_route(
    name: str,
    *,
    providers: Collection[str],
    catalogue: Catalogue,
    aliases: Mapping[str, str],
) -> Route:
    """Return the model that `name` means, in the catalogue's own spelling.

    Raises ModelNotFound, AmbiguousModel, InvalidRequest.
    """
    if (listed := catalogue.spelled(name)) is not None:
        return Route(listed.ref, listed)
    ref = resolve_name(
        name,
        providers=providers,
        catalogue=catalogue,
        aliases=aliases,
    )
    info = catalogue.find(ref)
    if info is not None:
        ref = ModelRef(info.ref.provider, info.ref.model, ref.revision)
    return Route(ref, info)


def resolve_name(
    name: str,
    *,
    providers: Collection[str],
    catalogue: Catalogue,
    aliases: Mapping[str, str],
) -> ModelRef:
    """Return the model that `name` means.

    `provider/model` always works. Any other name is, in this order: an alias, the exact name of
    one model in the catalogue, `owner/name` on the Hub, `name[:tag]` at Ollama.

    Raises AmbiguousModel when several providers have it, ModelNotFound (with the nearest names)
    when nobody can.
    """
    if not name or len(name) > MAX_NAME_LENGTH:
        raise InvalidRequest("A model name has 1 to 512 characters.", param="model")
    provider, slash, rest = name.partition("/")
    if slash and provider in providers:
        return parse_ref(provider, rest)
    if slash and provider == RESERVED:
        raise ModelNotFound(name, message=f"'{name}' is no model: such names are rotations'.")
    if name in aliases:
        return resolve_name(aliases[name], providers=providers, catalogue=catalogue, aliases={})
    matches = catalogue.named(name)
    if len(matches) > 1:
        raise AmbiguousModel(name, [str(ref) for ref in matches])
    if matches:
        return matches[0]
    if "huggingface" in providers and HUB_NAME.fullmatch(name.partition("@")[0]):
        return parse_ref("huggingface", name)
    if "ollama" in providers and looks_like_ollama(name):
        return parse_ref("ollama", name)
    raise ModelNotFound(name, nearest_names(name, catalogue.refs))


def describe_guess(
    name: str, route: Route, error: ProviderUnavailable, catalogue: Catalogue
) -> ProviderUnavailable:
    """Return the error of a provider that is away; for a bare name that nobody is known to have,
    one that says so first, with the nearest names."""
    if route.info is not None or name.startswith(f"{error.provider}/"):
        return error
    nearest = nearest_names(name, catalogue.refs)
    guess = f"Did you mean {' or '.join(nearest)}? " if nearest else ""
    return ProviderUnavailable(
        error.provider,
        f"No model '{name}' is known here, and {error.provider}, which might have it, is away: "
        f"{error.message}",
        hint=f"{guess}Models are named provider/name; GET /v1/models lists them.",
    )


def find_needs(request: GenerateRequest | EmbedRequest) -> tuple[Capability, ...]:
    """Return what a model must be able to do to serve `request`, beside writing text."""
    if isinstance(request, EmbedRequest):
        return (Capability.EMBEDDING,)
    needs: list[Capability] = []
    if request.has_images:
        needs.append(Capability.VISION)
    if request.tools:
        needs.append(Capability.TOOLS)
    if request.think:
        needs.append(Capability.THINKING)
    if request.response_format is not None and request.response_format.type != "text":
        needs.append(Capability.STRUCTURED)
    return tuple(needs)


def require_capabilities(request: GenerateRequest | EmbedRequest, info: ModelInfo) -> None:
    """Raise UnsupportedCapability for the first thing asked for that the model cannot do.

    A model whose capabilities are unknown is trusted: its provider will say no.
    """
    if info.capabilities:
        require_needs(find_needs(request), info)


def require_needs(needs: Collection[Capability], info: ModelInfo) -> None:
    """Do as `require_capabilities` for what `find_needs` found."""
    able = info.capabilities
    if not able:
        return
    if Capability.EMBEDDING in needs:
        _require_embedding(info)
        return
    for capability in needs:
        if capability not in able:
            raise UnsupportedCapability(
                f"{info.id} does not support {_ASKED[capability]}.",
                hint=f"It can: {', '.join(able)}.",
                param=_PARAMS[capability],
            )
    if Capability.CHAT not in able and Capability.COMPLETION not in able:
        raise cannot_generate(info.id)


def _require_embedding(info: ModelInfo) -> None:
    # Ollama embeds with more models than those that it lists as made for it, so it is asked.
    if Capability.EMBEDDING not in info.capabilities and info.ref.provider != "ollama":
        raise cannot_embed(info.id)


def cannot_embed(name: str) -> UnsupportedCapability:
    """Return the error for a model that was asked for embeddings and makes none."""
    return UnsupportedCapability(
        f"{name} does not make embeddings.",
        hint="GET /api/v1/models?capability=embedding lists models that do.",
        param="model",
    )


def cannot_generate(name: str) -> UnsupportedCapability:
    """Return the error for a model that was asked for text and writes none."""
    return UnsupportedCapability(
        f"{name} does not generate text.",
        hint="Choose a model that can chat or complete.",
        param="model",
    )


_ASKED = {
    Capability.VISION: "images",
    Capability.TOOLS: "tools",
    Capability.THINKING: "thinking",
    Capability.STRUCTURED: "structured output",
}
_PARAMS = {
    Capability.VISION: "messages",
    Capability.TOOLS: "tools",
    Capability.THINKING: "think",
    Capability.STRUCTURED: "response_format",
}
