"""Loads a GGUF file with llama.cpp into what the engine runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from gateway.core.errors import ModelLoadFailed
from gateway.core.gguf import BrokenGguf, GgufHeader, Scalar, read_header, split_parts
from gateway.core.loading import LoadConfig
from gateway.engine.decoding.loaded import LoadedModel, Recipe
from gateway.engine.llama_cpp import INSTALL_HINT, is_installed
from gateway.engine.llama_cpp.library import load_library
from gateway.engine.llama_cpp.model import ContextConfig, LlamaContext, LlamaModel
from gateway.engine.llama_cpp.runner import LlamaRunner
from gateway.engine.llama_cpp.tokenizer import LlamaTokenizer
from gateway.engine.llama_cpp.trial import try_load
from gateway.engine.text.prompt import PromptEncoder
from gateway.engine.text.vocabulary import Vocabulary
from gateway.engine.weights.compute import bound_threads
from gateway.engine.weights.runtime import import_torch

# What each key of the metadata is called in a generation config. Source: llama-arch.cpp.
_SAMPLING = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_p": "top_p",
    "general.sampling.top_k": "top_k",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
}


class GenerationConfig(msgspec.Struct, frozen=True):
    """The sampling that a file asks for, in the terms of transformers; none of it: greedy."""

    do_sample: bool = False
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


class LoadedFile(msgspec.Struct, frozen=True, weakref=True):
    """What LoadedModel holds in place of a transformers model."""

    weights: LlamaModel
    generation_config: GenerationConfig


def load_gguf(
    name: str,
    path: Path,
    config: LoadConfig,
    *,
    threads: int = 0,
    context_length: int,
    sequences: int,
    is_proven: bool = False,
) -> LoadedModel:
    """Load the model whose (first) file is `path`. Blocking; takes seconds.

    `context_length` is the most tokens of one sequence and `sequences` how many there may be: their
    room is set aside. A file that is not `is_proven` is loaded by a child process first.

    Raises ModelLoadFailed with the reason for a person, whatever is in the file.
    """
    if not is_installed():
        raise ModelLoadFailed(f"{name} is a GGUF file.", hint=INSTALL_HINT)
    header = _require_headers(name, path)
    import_torch()
    try:
        if not is_proven:
            try_load(path, _total_bytes(path))
        return _load(path, header, config, threads, context_length, sequences)
    except ModelLoadFailed as error:
        raise ModelLoadFailed(
            f"{name} could not be loaded: {error.message}", hint=error.hint
        ) from error


def _load(
    path: Path,
    header: GgufHeader,
    config: LoadConfig,
    threads: int,
    context_length: int,
    sequences: int,
) -> LoadedModel:
    library = load_library()
    offload = config.device != "cpu" and library.api.llama_supports_gpu_offload()
    model = LlamaModel(library, path, offload=offload)
    room = ContextConfig(
        context_length=min(context_length, model.trained_context or context_length),
        sequences=sequences,
        threads=bound_threads(threads),
        full_precision=header.quantization == "F32",
    )
    context = LlamaContext(library, model, room)
    tokenizer = LlamaTokenizer(model, header.text("tokenizer.chat_template"))
    return LoadedModel(
        model=LoadedFile(model, read_sampling(header.metadata)),
        runner=LlamaRunner(context, sequences),
        recipe=Recipe(way="batch"),
        encoder=PromptEncoder(tokenizer),
        vocabulary=Vocabulary(tokenizer, model.vocabulary_size, tokenizer.eos_ids),
        eos_ids=tokenizer.eos_ids,
        vocabulary_size=model.vocabulary_size,
        context_length=room.context_length,
        memory_bytes=model.memory_bytes + context.memory_bytes,
        first_bytes=0,
        device="gpu" if offload else "cpu",
        dtype=header.quantization or "unknown",
    )


def read_sampling(metadata: Mapping[str, Scalar]) -> GenerationConfig:
    """Return the sampling that the metadata asks for; what is no number is passed over."""
    found: dict[str, Any] = {
        name: value
        for key, name in _SAMPLING.items()
        if isinstance(value := metadata.get(key), int | float)
    }
    return GenerationConfig(do_sample=bool(found), **found)


def _require_headers(name: str, path: Path) -> GgufHeader:
    """Return the header of the first file; all of them must be there and whole."""
    try:
        headers = [_read(path.with_name(f"{stem}.gguf")) for stem in split_parts(path.stem)[1]]
    except BrokenGguf as error:
        raise ModelLoadFailed(f"{name} could not be loaded: the file {error}.") from None
    except OSError as error:
        raise ModelLoadFailed(
            f"{name} could not be loaded: {error.filename} cannot be read: {error.strerror}."
        ) from None
    return headers[0]


def _read(file: Path) -> GgufHeader:
    with file.open("rb") as stream:
        return read_header(stream, file.stat().st_size)


def _total_bytes(path: Path) -> int:
    return sum(path.with_name(f"{stem}.gguf").stat().st_size for stem in split_parts(path.stem)[1])
