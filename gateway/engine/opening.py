"""Makes an engine of a model's files, in the process that calls."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType

import msgspec

from gateway.core.errors import ModelLoadFailed
from gateway.core.loading import LoadConfig
from gateway.core.models import LocalModel
from gateway.core.names import ModelRef
from gateway.engine.decoding.loaded import LoadedModel, Recipe
from gateway.engine.embedding.embedder import EmbeddingEngine
from gateway.engine.embedding.loader import load_embedder
from gateway.engine.engine import Engine, TransformersEngine
from gateway.engine.files.progress import LoadProgress
from gateway.engine.llama_cpp.loader import load_gguf
from gateway.engine.loading.loader import load_model
from gateway.engine.loading.room import EngineRoom
from gateway.engine.memory.memory import Memory
from gateway.engine.weights.compute import Inline, run_aside


class EngineSpec(msgspec.Struct, frozen=True):
    """All that it takes to make an engine. Plain data, so that another process can make it."""

    ref: ModelRef
    files: LocalModel
    load: LoadConfig
    max_active: int
    max_queue: int
    threads: int = 0
    prompt_cache_bytes: int = 0
    gguf_context_length: int = 4096
    """Tokens set aside for each sequence of a GGUF model, if it can take as many."""
    recipe: Recipe | None = None
    """What an earlier load of the very same files, in the same way, found out."""


async def open_engine(
    spec: EngineSpec,
    progress: LoadProgress | None = None,
    memory: Memory | None = None,
    *,
    room: EngineRoom | None = None,
) -> Engine:
    """Load the model in a thread and return the engine that answers with it: one that embeds, if
    that is what the model's files are for, else one that generates.

    The engine's cache takes its bytes from `memory` (None: nobody counts them). `room` is what it
    shares with other engines (None: nothing). Raises ModelLoadFailed with the reason for a person,
    ModelUnloaded when `progress` was cancelled.
    """
    is_plain = spec.load.quantization == "none"
    if not is_plain and (spec.files.card.embeds or spec.files.card.format == "gguf"):
        raise ModelLoadFailed(
            f"{spec.ref} cannot be loaded as {spec.load.quantization}.",
            hint="Only models that generate text, of no GGUF file, are quantized while they load.",
            param="quantization",
        )
    open = _open_embedder if spec.files.card.embeds else _open_generator
    return await open(
        spec, progress or LoadProgress(), memory, room or EngineRoom(Inline(spec.threads))
    )


async def _open_embedder(
    spec: EngineSpec, progress: LoadProgress, memory: Memory | None, room: EngineRoom
) -> Engine:
    path, trust = Path(spec.files.path), spec.files.trust
    load = partial(load_embedder, str(spec.ref), path, spec.load, progress, trust)
    loaded = await run_aside(load)
    return EmbeddingEngine(
        spec.ref,
        loaded,
        max_queue=spec.max_queue,
        memory=memory,
        compute=room.compute_on(str(loaded.model.device)),
    )


async def _open_generator(
    spec: EngineSpec, progress: LoadProgress, memory: Memory | None, room: EngineRoom
) -> Engine:
    load = _LOADERS[spec.files.card.format]
    loaded = await run_aside(partial(load, spec, progress, room))
    return TransformersEngine(
        spec.ref,
        loaded,
        max_active=spec.max_active,
        max_queue=spec.max_queue,
        prompt_cache_bytes=spec.prompt_cache_bytes,
        memory=memory,
        compute=room.compute_on(loaded.device),
        behind=room.behind,
    )


def _load_folder(spec: EngineSpec, progress: LoadProgress, room: EngineRoom) -> LoadedModel:
    path, trust = Path(spec.files.path), spec.files.trust
    return load_model(str(spec.ref), path, spec.load, progress, spec.recipe, room, trust)


def _load_gguf(spec: EngineSpec, progress: LoadProgress, room: EngineRoom) -> LoadedModel:
    progress.check()
    return load_gguf(
        str(spec.ref),
        Path(spec.files.path),
        spec.load,
        threads=spec.threads,
        context_length=spec.gguf_context_length,
        sequences=spec.max_active,
        is_proven=spec.recipe is not None,
    )


_LOADERS: Mapping[str, Callable[[EngineSpec, LoadProgress, EngineRoom], LoadedModel]] = (
    MappingProxyType({"safetensors": _load_folder, "pickle": _load_folder, "gguf": _load_gguf})
)
