"""The models that are listed, found by name in constant time. Pure; built once for each listing."""

from collections.abc import Iterable, Iterator

from gateway.core.errors import InvalidRequest
from gateway.core.models import ModelInfo
from gateway.core.names import ModelRef, normalise_ollama_name


class Catalogue:
    """Listed models by every name that means them. Ollama's names are matched in any case."""

    def __init__(self, models: Iterable[ModelInfo] = ()) -> None:
        self._by_ref: dict[ModelRef, ModelInfo] = {}
        self._by_id: dict[str, ModelInfo] = {}
        self._by_name: dict[str, list[ModelInfo]] = {}
        for info in models:
            self._by_id.setdefault(info.id, info)
            self._by_ref.setdefault(_key(info.ref), info)
            names = self._by_name.setdefault(_bare_name(info.ref), [])
            if all(other.ref != info.ref for other in names):
                names.append(info)

    def __iter__(self) -> Iterator[ModelInfo]:
        return iter(self._by_ref.values())

    def __len__(self) -> int:
        return len(self._by_ref)

    @property
    def refs(self) -> list[ModelRef]:
        return [info.ref for info in self]

    def spelled(self, name: str) -> ModelInfo | None:
        """Return the model whose full name is written like that, which most requests do."""
        return self._by_id.get(name)

    def find(self, ref: ModelRef) -> ModelInfo | None:
        """Return the model's line; a listing shows each model once, whatever revision is asked."""
        return self._by_ref.get(_key(ref)) or self._by_ref.get(
            _key(ModelRef(ref.provider, ref.model))
        )

    def named(self, name: str) -> list[ModelRef]:
        """Return the models whose bare name, without a provider, is exactly `name`."""
        model, _, revision = name.partition("@")
        found = {
            info.ref
            for info in self._by_name.get(model, ())
            if info.ref.provider != "ollama" and (not revision or revision == info.ref.revision)
        }
        found |= {
            info.ref
            for info in self._by_name.get(_ollama_name(name), ())
            if info.ref.provider == "ollama"
        }
        return sorted(found)


def _key(ref: ModelRef) -> ModelRef:
    return ModelRef("ollama", ref.model.lower()) if ref.provider == "ollama" else ref


def _bare_name(ref: ModelRef) -> str:
    return ref.model.lower() if ref.provider == "ollama" else ref.model


def _ollama_name(name: str) -> str:
    """Return how Ollama would list `name`, in lower case; an empty string when it could not."""
    try:
        return normalise_ollama_name(name).lower()
    except InvalidRequest:
        return ""
