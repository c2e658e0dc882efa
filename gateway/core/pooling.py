"""How the hidden states of a text become its one vector, as a model's files describe it. Pure.

Source: the files that sentence-transformers 6.2 writes: modules.json, 1_Pooling/config.json.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import msgspec

from gateway.core.errors import ModelLoadFailed

PoolingMode = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
StepKind = Literal["Dense", "Normalize"]

# In the order in which the vectors of several modes stand side by side.
_FLAGS: dict[str, PoolingMode] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_WITHOUT_EFFECT = ("Dropout",)


class Step(msgspec.Struct, frozen=True):
    """What is done to a vector after the pooling; `path` is the folder of its files."""

    kind: StepKind
    path: str


class Modules(msgspec.Struct, frozen=True):
    """`pooling_path` is the folder of the pooling's own file; None: the files name no pooling."""

    pooling_path: str | None = None
    steps: tuple[Step, ...] = ()


PLAIN = Modules(steps=(Step("Normalize", ""),))
"""For a model without such files: the mean of its hidden states, at length 1."""


def has_pooling(modules: Any) -> bool:
    """Tell whether modules.json says that the model in its own folder makes one vector a text."""
    kinds = [(_kind(entry), _path(entry)) for entry in _entries(modules)]
    return bool(kinds) and kinds[0] == ("Transformer", "") and "Pooling" in dict(kinds)


def read_modules(modules: Any) -> Modules:
    """Return the pooling and what follows it; raises ModelLoadFailed for what is not known here."""
    if not has_pooling(modules):
        raise ModelLoadFailed("modules.json does not describe a transformer and its pooling.")
    _, *entries = _entries(modules)
    pooling: str | None = None
    steps: list[Step] = []
    for entry in entries:
        kind, path = _kind(entry), _path(entry)
        if path.startswith("/") or ".." in path.split("/"):
            raise ModelLoadFailed(f"modules.json names a folder outside of the model: {path!r}.")
        if kind == "Pooling" and pooling is None and not steps:
            pooling = path
        elif kind in get_args(StepKind) and pooling is not None:
            steps.append(Step(kind, path))  # type: ignore[arg-type]
        elif kind not in _WITHOUT_EFFECT:
            raise ModelLoadFailed(f"modules.json asks for '{kind[:80]}' at a place not known here.")
    return Modules(pooling, tuple(steps))


def read_pooling(config: Mapping[str, Any]) -> tuple[PoolingMode, ...]:
    """Return the modes whose vectors are put side by side; raises ModelLoadFailed for others."""
    given = config.get("pooling_mode")
    if given is None:
        given = [mode for flag, mode in _FLAGS.items() if config.get(flag) is True] or ["mean"]
    modes = [given] if isinstance(given, str) else given
    if not isinstance(modes, list) or not modes:
        raise ModelLoadFailed("The pooling's config.json has no list of modes.")
    for mode in modes:
        if mode not in get_args(PoolingMode):
            raise ModelLoadFailed(f"The pooling mode {str(mode)[:80]!r} is not known here.")
    return tuple(modes)


def read_max_length(config: Mapping[str, Any]) -> int | None:
    """Return the most tokens of a text, from sentence_bert_config.json; None: it does not say."""
    length = config.get("max_seq_length")
    return length if isinstance(length, int) and length > 0 else None


def _entries(modules: Any) -> Sequence[Mapping[str, Any]]:
    is_list = isinstance(modules, list) and all(isinstance(entry, dict) for entry in modules)
    return modules if is_list else ()


def _kind(entry: Mapping[str, Any]) -> str:
    # The packages of the classes change with the versions, their names do not.
    return str(entry.get("type", "")).rpartition(".")[2]


def _path(entry: Mapping[str, Any]) -> str:
    return str(entry.get("path", ""))
