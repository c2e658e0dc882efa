"""Loads a model in a process of its own and prints the most memory that it took meanwhile.

python -m tests.integration.engine.load_peak_child WARM FOLDER DTYPE QUANTIZATION
"""

import gc
import json
import sys
from pathlib import Path

from msgspec.structs import replace

from gateway.core.cards import ModelCard
from gateway.core.loading import LoadConfig
from gateway.core.models import LocalModel
from gateway.engine.decoding.loaded import LoadedModel
from gateway.engine.files.needs import estimate_load
from gateway.engine.loading.loader import load_model
from gateway.engine.loading.room import EngineRoom
from gateway.engine.weights.runtime import give_back_memory, import_torch


def status_bytes(which: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(which)) * 1024


def _pack(loaded: LoadedModel) -> None:
    """Do what is done behind the model's answers."""
    while loaded.packing and not loaded.packing.is_done:
        loaded.packing.step()


def main(warm: Path, folder: Path, config: LoadConfig) -> None:
    import_torch()
    room = EngineRoom()
    # What torch and transformers take once and for all is no model's.
    _pack(load_model("warm", warm, replace(config, dtype="float32"), room=room))
    give_back_memory()
    before = status_bytes("VmRSS:")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    dtype = json.loads((folder / "config.json").read_text())["dtype"]
    size = (folder / "model.safetensors").stat().st_size
    files = LocalModel("model", str(folder), size, card=ModelCard(dtype=dtype))
    estimated = estimate_load(files, config) + room.code_bytes(files, config)
    loaded = load_model("model", folder, config, room=room)
    _pack(loaded)
    peak = status_bytes("VmHWM:") - before
    gc.collect()
    kept = status_bytes("VmRSS:") - before
    report = {
        "peak": peak,
        "kept": kept,
        "counted": loaded.memory_bytes + room.overhead.held_bytes,
        "overhead": room.overhead.held_bytes,
        "estimated": estimated,
    }
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    warm, folder, dtype, quantization = sys.argv[1:]
    main(Path(warm), Path(folder), LoadConfig("cpu", dtype, quantization))  # type: ignore[arg-type]
