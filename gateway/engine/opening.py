"""Makes an engine of a model's files, in the process that calls."""

from pathlib import Path

import anyio.to_thread
import msgspec

from gateway.core.models import LocalModel
from gateway.core.names import ModelRef
from gateway.engine.engine import Engine, TransformersEngine
from gateway.engine.loader import LoadConfig, load_model


class EngineSpec(msgspec.Struct, frozen=True):
    """All that it takes to make an engine. Plain data, so that another process can make it."""

    ref: ModelRef
    files: LocalModel
    load: LoadConfig
    max_active: int
    max_queue: int


async def open_engine(spec: EngineSpec) -> Engine:
    """Load the model in a thread and return the engine that answers with it.

    Raises ModelLoadFailed with the reason for a person.
    """
    path = Path(spec.files.path)
    loaded = await anyio.to_thread.run_sync(load_model, str(spec.ref), path, spec.load)
    return TransformersEngine(
        spec.ref,
        loaded,
        max_active=spec.max_active,
        max_queue=spec.max_queue,
        threads=spec.load.threads,
    )
