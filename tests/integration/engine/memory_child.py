"""Loads, uses and unloads models in a process of its own; prints its memory after each step.

python -m tests.integration.engine.memory_child CYCLES FOLDER [FOLDER ...]
"""

import json
import sys
import time
from pathlib import Path

import anyio

from gateway.core.loading import LoadConfig
from gateway.core.models import LocalModel
from gateway.core.names import ModelRef
from gateway.engine.decoding.loaded import Recipe
from gateway.engine.engine import Engine
from gateway.engine.files.progress import LoadProgress
from gateway.engine.memory.budget import DeviceBudgets, Share
from gateway.engine.memory.ledger import MemoryLedger
from gateway.engine.memory.overhead import resident_bytes
from gateway.engine.opening import EngineSpec, open_engine
from gateway.engine.residents.manager import HuggingFaceModelManager
from tests.integration.engine.conftest import ask
from tests.told import collect


class Opener:
    """Opens models as the service does: a second load need not find out anything again."""

    def __init__(self) -> None:
        self._recipes: dict[ModelRef, Recipe | None] = {}

    async def open(
        self,
        ref: ModelRef,
        files: LocalModel,
        config: LoadConfig,
        progress: LoadProgress,
        share: Share,
    ) -> Engine:
        recipe = self._recipes.get(ref)
        spec = EngineSpec(ref, files, config, max_active=2, max_queue=2, recipe=recipe)
        engine = await open_engine(spec, progress, share)
        self._recipes[ref] = engine.recipe
        return engine


async def use(manager: HuggingFaceModelManager, ref: ModelRef, files: LocalModel) -> int:
    """Stream two answers side by side; return the memory of the process meanwhile."""
    async with manager.lease(ref, files) as engine:
        async with anyio.create_task_group() as tasks:
            for words in (1, 40):
                request = ask("a " * words, max_tokens=4)
                tasks.start_soon(collect, engine.stream(request))
        return resident_bytes()


async def main(cycles: int, folders: list[Path]) -> None:
    loaded_bytes: list[int] = []
    unloaded_bytes: list[int] = []
    budgets = DeviceBudgets(lambda device: 10**9)
    async with anyio.create_task_group() as tasks:
        manager = HuggingFaceModelManager(
            open=Opener().open,
            choose_device=lambda config: "cpu",
            ledger=MemoryLedger(budgets),
            task_group=tasks,
            observe=lambda change: None,
            max_models=1,
        )
        for folder in folders * cycles:
            size = (folder / "model.safetensors").stat().st_size
            files = LocalModel(folder.name, str(folder), size)
            ref = ModelRef("huggingface", folder.name)
            loaded_bytes.append(await use(manager, ref, files))
            await manager.unload(ref)
            assert budgets.of("cpu").used_bytes == 0
            unloaded_bytes.append(resident_bytes())
        await manager.aclose()
    report = {"loaded": loaded_bytes, "unloaded": unloaded_bytes, "seconds": time.process_time()}
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    anyio.run(main, int(sys.argv[1]), [Path(folder) for folder in sys.argv[2:]])
