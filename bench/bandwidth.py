"""How fast a device's memory is: the limit of one stream, as each token reads all weights.

python -m bench.bandwidth DEVICE
"""

import subprocess
import sys
import time
from pathlib import Path

from bench.answers import Figures

COPIED_BYTES = 2**28
COPIES = 10


def measure(device: str) -> float:
    """Return the bytes a second that a large copy reads and writes, the best of some; in a process
    that ends: who measures must not hold torch."""
    command = [sys.executable, "-m", "bench.bandwidth", device]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def copy(device: str) -> float:
    import torch

    source = torch.ones(COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times_s = []
    for _ in range(COPIES):
        _finish(device)
        began = time.perf_counter()
        target.copy_(source)
        _finish(device)
        times_s.append(time.perf_counter() - began)
    return 2 * COPIED_BYTES / min(times_s)


def _finish(device: str) -> None:
    import torch

    if device != "cpu":
        torch.accelerator.synchronize(device)


def weight_bytes(folder: Path) -> int:
    """Return the bytes that each token reads: all, as the shapes tie their embeddings."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def share_of_limit(
    found: Figures, new_tokens: int, weights_bytes: int, bytes_per_s: float
) -> float:
    """Return what one stream has, once it speaks, of the tokens a second that its memory allows."""
    speaking_s = new_tokens / found.tokens_per_s - found.ttft_p50_s
    return (new_tokens - 1) / speaking_s * weights_bytes / bytes_per_s


def main() -> None:
    sys.stdout.write(f"{copy(sys.argv[1])}\n")


if __name__ == "__main__":
    main()
