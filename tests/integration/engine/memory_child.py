"""Loads and unloads models in a process of its own and prints its memory after each unload.

python -m tests.integration.engine.memory_child LOADS FOLDER [FOLDER ...]
"""

import json
import os
import sys
import time
from pathlib import Path

import anyio

from gateway.core.events import collect
from gateway.core.loading import LoadConfig
from gateway.core.models import LocalModel
from gateway.core.names import ModelRef
from gateway.engine.budget import DeviceBudgets, Share
from gateway.engine.engine import Engine
from gateway.engine.manager import HuggingFaceModelManager
from gateway.engine.opening import EngineSpec, open_engine
from gateway.engine.progress import LoadProgress
from tests.integration.engine.conftest import ask


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def open_here(
    ref: ModelRef, files: LocalModel, config: LoadConfig, progress: LoadProgress, share: Share
) -> Engine:
    spec = EngineSpec(ref, files, config, max_active=2, max_queue=2)
    return await open_engine(spec, progress, share)


async def main(loads: int, folders: list[Path]) -> None:
    loaded_bytes: list[int] = []
    unloaded_bytes: list[int] = []
    async with anyio.create_task_group() as tasks:
        manager = HuggingFaceModelManager(
            open=open_here,
            choose_device=lambda config: "cpu",
            budgets=DeviceBudgets(lambda device: 10**9),
            task_group=tasks,
            observe=lambda change: None,
            max_models=1,
        )
        for number in range(loads):
            folder = folders[number % len(folders)]
            size = (folder / "model.safetensors").stat().st_size
            files = LocalModel(folder.name, str(folder), size)
            ref = ModelRef("huggingface", folder.name)
            async with manager.lease(ref, files) as engine:
                await collect(engine.stream(ask(max_tokens=2)))
            del engine
            loaded_bytes.append(resident_bytes())
            await manager.unload(ref)
            unloaded_bytes.append(resident_bytes())
        await manager.aclose()
    report = {"loaded": loaded_bytes, "unloaded": unloaded_bytes, "seconds": time.process_time()}
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    anyio.run(main, int(sys.argv[1]), [Path(folder) for folder in sys.argv[2:]])
