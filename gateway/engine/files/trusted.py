"""How the files of a model may be read: the one home of what transformers is allowed to do.

Nothing is ever fetched. Pickles are read by a reader that makes tensors only, and code that comes
with a model runs if the operator trusts the model, from its own files.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gateway.core.cards import PICKLES
from gateway.core.errors import ModelLoadFailed, ModelRefused
from gateway.core.trust import ALLOW_PICKLE, TRUST_REPOSITORY, Trust

_OWN_CLASS = re.compile(r"(?!.*--)[A-Za-z_][\w-]*(?:/[A-Za-z_][\w-]*)*\.[A-Za-z_]\w*")
"""A class in a module of the model's folder. With `--` it is another repository's, and a path that
begins with a slash, or goes up, leads elsewhere."""
UNTRUSTED = Trust()
_ASKS_FOR_TRUST = "trust_remote_code"


def reading_options(trust: Trust) -> dict[str, Any]:
    """Return how everything is read from a model's folder."""
    return {"local_files_only": True, "trust_remote_code": trust.code}


def weight_options(path: Path, trust: Trust) -> dict[str, Any]:
    """Return how the weights are read: safetensors wherever there are any."""
    return {
        "use_safetensors": any(path.glob("*.safetensors")) or not trust.pickle,
        "weights_only": True,
        **reading_options(trust),
    }


def require_readable(name: str, path: Path, trust: Trust) -> None:
    """Raise ModelRefused for a folder whose weights, or whose code, the operator does not allow,
    and ModelLoadFailed for one without weights."""
    if trust.code:
        _require_own_code(name, path)
    if any(path.glob("*.safetensors")):
        return
    pickles = sorted(file.name for file in path.glob(f"{PICKLES}*.bin"))
    if not pickles:
        raise ModelLoadFailed(
            f"{name} has no safetensors files.",
            hint="Only safetensors are loaded: other formats can run code.",
        )
    if not trust.pickle:
        raise ModelRefused(
            f"The weights of {name} are pickles ({pickles[0]}), which the operator does not allow.",
            hint=f"{ALLOW_PICKLE} lists the models whose pickles are read; safetensors need no "
            "leave.",
            param="model",
        )


def refusal_of(name: str, error: Exception, trust: Trust) -> ModelRefused | None:
    """Return what the failure of a load means if the model's own code was what it lacked, or if its
    pickles are none that may be read."""
    if isinstance(error, pickle.UnpicklingError):
        return ModelRefused(
            f"The pickles of {name} hold more than tensors, and only tensors are read.",
            hint="Convert its weights to safetensors where they come from.",
            param="model",
        )
    if trust.code or _ASKS_FOR_TRUST not in str(error):
        return None
    return ModelRefused(
        f"{name} needs code of its own, which the operator does not allow.",
        hint=f"{TRUST_REPOSITORY} lists the models whose code is run; read it first.",
        param="model",
    )


def _require_own_code(name: str, path: Path) -> None:
    for file in sorted(path.glob("*.json")):
        for each in _classes(_read(file)):
            if not _OWN_CLASS.fullmatch(each):
                raise ModelRefused(
                    f"{name} names code that is not in its own files: {each[:200]!r} in "
                    f"{file.name}.",
                    hint="Only files of the model itself are run, also where it is trusted.",
                    param="model",
                )


def _classes(value: Any, is_map: bool = False) -> Iterator[str]:
    """Yield every class that an `auto_map` anywhere in `value` names."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _classes(each, is_map or key == "auto_map")
    elif isinstance(value, list):
        for each in value:
            yield from _classes(each, is_map)
    elif is_map and isinstance(value, str):
        yield value


def _read(file: Path) -> Any:
    if file.name in ("tokenizer.json", "vocab.json"):  # megabytes, and no settings
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
