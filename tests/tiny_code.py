"""Tiny models whose files may do harm: with code of their own, with weights in pickles."""

import json
from pathlib import Path
from typing import Any

from tests.tiny_models import build_model

_CONFIGURATION = """\
from transformers import LlamaConfig


class CanaryConfig(LlamaConfig):
    model_type = "tiny_canary"
"""
_MODELING = """\
from pathlib import Path

from transformers import LlamaForCausalLM

from .configuration_canary import CanaryConfig

Path({canary!r}).touch()


class CanaryForCausalLM(LlamaForCausalLM):
    config_class = CanaryConfig
"""


def build_coded(folder: Path, canary: Path, *, prefix: str = "") -> Path:
    """Write a model that only its own code can load; that makes the file `canary` as it is run.

    `prefix` stands before the names of its classes: `other/repository--`, say.
    """
    build_model(folder)
    (folder / "configuration_canary.py").write_text(_CONFIGURATION)
    (folder / "modeling_canary.py").write_text(_MODELING.format(canary=str(canary)))
    change_config(
        folder,
        model_type="tiny_canary",
        architectures=["CanaryForCausalLM"],
        auto_map={
            "AutoConfig": f"{prefix}configuration_canary.CanaryConfig",
            "AutoModelForCausalLM": f"{prefix}modeling_canary.CanaryForCausalLM",
        },
    )
    return folder


def change_config(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def pickle_weights(folder: Path) -> Path:
    """Put a pickle in the place of a model's safetensors, as torch saves one; return it."""
    import torch
    from safetensors.torch import load_file

    weights = folder / "model.safetensors"
    pickled = folder / "pytorch_model.bin"
    torch.save(load_file(weights), pickled)
    weights.unlink()
    return pickled


class Harmful:
    """What makes a file as soon as it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._canary,)
