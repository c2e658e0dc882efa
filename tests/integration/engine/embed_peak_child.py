"""Embeds long inputs in a process of its own and prints how it grew, and what was told of it.

python -m tests.integration.engine.embed_peak_child FOLDER DTYPE ROWSxTOKENS ...
"""

import json
import sys
from pathlib import Path

from gateway.core.loading import LoadConfig
from gateway.engine.embedding.loader import load_embedder
from gateway.engine.memory.overhead import resident_bytes
from gateway.engine.weights.runtime import give_back_memory, import_torch
from tests.integration.engine.load_peak_child import status_bytes


def main(folder: Path, dtype: str, shapes: list[str]) -> None:
    import_torch()
    loaded = load_embedder("m", folder, LoadConfig("cpu", dtype))  # type: ignore[arg-type]
    report = []
    for shape in shapes:
        rows, longest = map(int, shape.split("x"))
        inputs = [[5] * (longest - row) for row in range(rows)]
        loaded.run([ids[:16] for ids in inputs])  # what comes with the first batch of its kind
        give_back_memory()
        before = resident_bytes() or 0
        Path("/proc/self/clear_refs").write_text("5")
        loaded.run(inputs)
        told = loaded.usual_bytes + loaded.extra_bytes(rows, longest)
        report.append({"grew": status_bytes("VmHWM:") - before, "told": told})
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
