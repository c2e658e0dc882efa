"""Names of models: how they are written, normalised, and which look alike."""

import re
from collections.abc import Sequence
from functools import lru_cache

import msgspec

from gateway.core.errors import InvalidRequest

MAX_NAME_LENGTH = 512
MIN_LIKENESS = 0.45

# Source: Ollama's types/model/name.go. Parts are host, namespace, model and tag.
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")
_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
# Source: huggingface_hub's repository names: owner/name, 1 to 96 characters each.
HUB_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9_.-]{1,96}")


# Source: huggingface_hub's validate_repo_id; a name without an owner is one of the first models.
_REPOSITORY_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?")


class ModelRef(msgspec.Struct, frozen=True, order=True):
    """One model of one provider; prints as `ollama/llama3:8b` or `huggingface/o/n@revision`."""

    provider: str
    model: str
    revision: str | None = None

    @property
    def qualified_model(self) -> str:
        """The name at its provider, with the revision where one is pinned."""
        return f"{self.model}@{self.revision}" if self.revision else self.model

    def __str__(self) -> str:
        if self.revision is None:  # as nearly always
            return f"{self.provider}/{self.model}"
        return f"{self.provider}/{self.qualified_model}"


def parse_ref(provider: str, name: str) -> ModelRef:
    """Return the ref of `name` at `provider`, normalised as that provider's names are."""
    if provider == "ollama":
        return ModelRef(provider, normalise_ollama_name(name))
    model, _, revision = name.partition("@")
    parts = [*model.split("/"), *(revision.split("/") if revision else [])]
    # Both become parts of paths, and what cannot be printed no database or log can hold.
    if not name.isprintable() or any(part in ("", ".", "..") for part in parts):
        raise InvalidRequest(f"{name!r} is not a model name.", param="model")
    return ModelRef(provider, model, revision or None)


@lru_cache(maxsize=1024)  # of pure text, and asked for by nearly every request
def normalise_ollama_name(name: str) -> str:
    """Return the short form in which Ollama lists `name`: defaults dropped, the tag always there.

    `llama3.2`, `llama3.2:latest` and `registry.ollama.ai/library/llama3.2` are one model.
    Raises InvalidRequest for what Ollama would call an invalid model name.
    """
    path, slash, last = name.rpartition("/")
    model, colon, tag = last.partition(":")
    if not colon:
        tag = "latest"
    parts = path.split("/") if slash else []
    host, namespace = (parts[0], parts[1]) if len(parts) == 2 else ("", parts[0] if parts else "")
    legal = (
        len(parts) <= 2
        and _PART.fullmatch(model)
        and _PART.fullmatch(tag)
        and (not slash or _NAMESPACE.fullmatch(namespace))
        and (len(parts) < 2 or _HOST.fullmatch(host))
    )
    if not legal:
        raise InvalidRequest(f"{name!r} is not a valid Ollama model name.", param="model")
    if host.lower() == "registry.ollama.ai":
        host = ""
    if namespace.lower() == "library" and not host:
        namespace = ""
    prefix = "/".join(part for part in (host, namespace) if part)
    return f"{prefix}/{model}:{tag}" if prefix else f"{model}:{tag}"


def require_repository(name: str, param: str = "name") -> str:
    """Return `name` if a repository of the Hub can have it; raise InvalidRequest."""
    parts = name.split("/")
    legal = (
        1 <= len(parts) <= 2
        and len(name) <= 96
        and all(_REPOSITORY_PART.fullmatch(part) for part in parts)
        and "--" not in name
        and ".." not in name
        and not name.endswith(".git")
    )
    if not legal:
        raise InvalidRequest(
            f"{name[:200]!r} is not the name of a repository.",
            hint="Write owner/name; an Ollama model is ollama/name.",
            param=param,
        )
    return name


def nearest_names(name: str, catalogue: Sequence[ModelRef], limit: int = 3) -> list[str]:
    """Return up to `limit` full names from the catalogue that look most like `name`."""
    # A bare name is compared with bare names: the providers' prefixes would blur the likeness.
    wanted = _pairs(name)
    scored = [
        (_likeness(wanted, _pairs(str(ref) if "/" in name else ref.model)), str(ref))
        for ref in catalogue
    ]
    close = sorted((pair for pair in scored if pair[0] >= MIN_LIKENESS), key=lambda pair: -pair[0])
    return list(dict.fromkeys(full for _, full in close))[:limit]


def _pairs(name: str) -> set[str]:
    folded = f" {name.casefold()} "
    return {folded[index : index + 2] for index in range(len(folded) - 1)}


def _likeness(left: set[str], right: set[str]) -> float:
    """Return how many pairs of letters two names share, from 0 to 1 (the Dice coefficient)."""
    return 2 * len(left & right) / (len(left) + len(right))


def looks_like_ollama(name: str) -> bool:
    try:
        normalise_ollama_name(name)
    except InvalidRequest:
        return False
    return True
