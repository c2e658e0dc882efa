"""The listing of an OpenAI-compatible server, `/models`, to ModelInfo. Pure.

Beyond the ids each server tells what it likes: vLLM and SGLang `max_model_len`, llama.cpp `meta`
and the state of a model that its router knows, OpenRouter and others `context_length`.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

import msgspec

from gateway.core.errors import InvalidRequest
from gateway.core.models import ModelInfo
from gateway.core.names import ModelRef, parse_ref
from gateway.core.states import ModelState

T = TypeVar("T")

_MAX_CONTEXT = 2**31 - 1
_STATES = {
    "unloaded": ModelState.NOT_LOADED,
    "loading": ModelState.LOADING,
    "loaded": ModelState.LOADED,
}


class _Meta(msgspec.Struct):
    n_ctx: int | None = None
    n_ctx_train: int | None = None
    n_params: int | None = None
    size: int | None = None


class _Status(msgspec.Struct):
    value: str = ""


class _Line(msgspec.Struct):
    id: str
    owned_by: str | None = None
    root: str | None = None
    parent: str | None = None
    # Raw, because anything else than what is expected is no reason to hide the model.
    max_model_len: msgspec.Raw = msgspec.Raw(b"")
    context_length: msgspec.Raw = msgspec.Raw(b"")
    meta: msgspec.Raw = msgspec.Raw(b"")
    status: msgspec.Raw = msgspec.Raw(b"")


class _Listing(msgspec.Struct):
    data: list[_Line]


class Listed(msgspec.Struct, frozen=True):
    """A model of a server: its line, and the name that the server knows it by."""

    info: ModelInfo
    id: str


def read_listing(data: bytes, provider: str, allowed: Sequence[str]) -> list[Listed]:
    """Return the models of a listing that are allowed; raises ValueError for what is none.

    What cannot be a model's name is left out.
    """
    try:
        if data.lstrip()[:1] == b"[":
            lines = msgspec.json.decode(data, type=list[_Line])
        else:
            lines = msgspec.json.decode(data, type=_Listing).data
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ValueError("it is no listing") from error
    found: dict[ModelRef, Listed] = {}
    for line in lines:
        ref = read_ref(provider, line.id)
        if ref is not None and is_allowed(ref, allowed):
            found.setdefault(ref, Listed(_read_info(ref, line), line.id))
    return list(found.values())


def read_ref(provider: str, name: str) -> ModelRef | None:
    """Return the ref of a listed id. Some are paths: those lose what no name may begin with."""
    shown = "/".join(part for part in name.split("/") if part not in ("", ".", ".."))
    try:
        return parse_ref(provider, shown)
    except InvalidRequest:
        return None


def is_allowed(ref: ModelRef, allowed: Sequence[str]) -> bool:
    """Tell whether the operator lets `ref` be asked for."""
    return not allowed or any(fnmatchcase(ref.qualified_model, pattern) for pattern in allowed)


def list_literally(provider: str, allowed: Sequence[str]) -> list[Listed]:
    """Return the models that the operator names, for a server that lists none."""
    found = []
    for name in allowed:
        ref = None if set("*?[") & set(name) else read_ref(provider, name)
        if ref is not None:
            found.append(Listed(ModelInfo(ref, state=ModelState.LOADED), name))
    return found


def _read_info(ref: ModelRef, line: _Line) -> ModelInfo:
    meta = _convert(line.meta, _Meta) or _Meta()
    lengths = (
        _convert(line.max_model_len, int),
        meta.n_ctx,
        _convert(line.context_length, int),
        meta.n_ctx_train,
    )
    status = _convert(line.status, _Status) or _Status()
    facts = {
        "owned_by": line.owned_by,
        "root": line.root,
        "parent": line.parent,
        "parameters": meta.n_params,
    }
    return ModelInfo(
        ref=ref,
        # Who lists a model answers for it; few tell whether it must be loaded first.
        state=_STATES.get(status.value, ModelState.LOADED),
        size_bytes=meta.size if meta.size and meta.size > 0 else None,
        context_length=next((n for n in lengths if n and 0 < n <= _MAX_CONTEXT), None),
        metadata=tuple((key, str(fact)) for key, fact in facts.items() if fact),
    )


def _convert(raw: msgspec.Raw, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(raw, type=kind) if bytes(raw) else None
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
